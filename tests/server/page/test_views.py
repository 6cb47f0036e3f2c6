"""What the page does beside the chat: duels, code, publishing, the hour, usage, and texts of an encoder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from selenium.webdriver.common.keys import Keys
from tiny_encoder import make_bert, make_encoder_adapter
from tiny_serve import make_tokenizer
from tiny_server import GREEDY, Served, fronted, served

from polyvera.adapter.spec import AdapterSpec
from polyvera.model.load import Base
from polyvera.store.file.codec import encode

SIDES = {"A": "acme/one", "B": "acme/two", "base": "base"}


def choose_file(page: Browser, css: str, path: Path) -> None:
    page.driver.find_element("css selector", css).send_keys(str(path))


def answer(at: Served, model: str, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    found = at.openai().chat.completions.create(model=model, messages=messages, **GREEDY)  # type: ignore[call-overload]
    return str(found.choices[0].message.content)


def test_a_duel_counts_who_is_nearest_and_shows_where_they_differ(at: Served, page: Browser, tmp_path: Path) -> None:
    prompts = [f"the true thing {i}" for i in range(5)]
    right = [answer(at, "acme/two", prompt) for prompt in prompts]
    rows: list[dict[str, Any]] = [{"prompt": p, "answer": r} for p, r in zip(prompts, right, strict=True)]
    rows.append({"messages": [{"role": "user", "content": "er"}]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    page.view("duel")
    choose_file(page, "#duel-file", file)
    page.until(lambda: page.text("#duel-status") == "6 rows, 5 with a right answer.")
    page.fill("#duel-tokens", str(GREEDY["max_tokens"]))
    page.click("#duel-run")
    page.until(lambda: page.text("#duel-status") == "6 rows answered by all three.")
    score = dict(zip(page.texts("#duel-score tbody th"), page.texts("#duel-score tbody tr"), strict=True))
    assert list(score) == ["Adapter A: acme/one", "Adapter B: acme/two", "Base: base"]
    wins = {name: page.texts("#duel-score tbody td:nth-of-type(1)")[i] for i, name in enumerate(score)}
    assert wins == {"Adapter A: acme/one": "0", "Adapter B: acme/two": "5", "Base: base": "0"}
    assert page.texts(".duel-row .said")[0] == prompts[0]
    assert page.texts(".duel-row:first-child .answer")[1] == right[0]
    page.click("#duel-after")
    page.until(lambda: page.texts(".duel-row [aria-pressed]"))
    page.click("[aria-label='Base is best here']")
    assert page.texts("#duel-score tbody td:nth-of-type(1)") == ["0", "5", "1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no lines"), ("{", "Line 1 is not JSON."), ('{"x": 1}', "Line 1 has none of: messages, prompt")],
)
def test_a_file_that_is_no_duel_is_told(page: Browser, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text + "\n")
    page.view("duel")
    choose_file(page, "#duel-file", file)
    page.until(lambda: told in page.text("#duel-status"))


def test_a_request_is_shown_as_a_command_and_a_program_that_run(at: Served, page: Browser) -> None:
    page.fill("#prompt", 'it\'s "true"')
    page.click(".column:nth-child(2) [data-copy=curl]")
    curl = page.text("#code-text")
    assert curl.startswith(f"curl {at.url}/v1/chat/completions") and "it'\\''s" in curl and "stream" not in curl
    page.click("#code-close")
    page.click(".column:nth-child(2) [data-copy=Python]")
    printed: list[Any] = []
    exec(page.text("#code-text"), {"print": printed.append})
    assert printed == [answer(at, "acme/one", 'it\'s "true"')]
    page.click("#code-close")


def test_what_was_written_outlives_a_reload_and_a_failure(at: Served, page: Browser) -> None:
    page.fill("#adapter-A", "acme/two")
    page.fill("#prompt", "the first")
    page.press(Keys.ENTER)
    page.until(
        lambda: page.run("return document.querySelector('#stop').ariaDisabled") == "true" and page.texts(".turn")
    )
    page.fill("#prompt", "a draft")
    page.driver.refresh()
    page.until(lambda: page.texts("#rows th"))
    assert page.run("return document.querySelector('#prompt').value") == "a draft"
    assert page.run("return document.querySelector('#adapter-A').value") == "acme/two"
    page.fill("#prompt", "")
    page.press(Keys.ARROW_UP)
    assert page.run("return document.querySelector('#prompt').value") == "the first"
    page.run("window.fetch = () => Promise.reject(new TypeError('no network'))")
    page.fill("#prompt", "lost?")
    page.press(Keys.ENTER)
    page.until(lambda: "3 of 3 did not answer" in page.text("#chat-status"))
    assert page.run("return document.querySelector('#prompt').value") == "lost?"


def test_how_fast_each_answers_is_told(page: Browser) -> None:
    page.fill("#prompt", "the")
    page.press(Keys.ENTER)
    page.until(lambda: len(page.texts(".column .note")) == 3 and all("first after" in t for t in page.texts(".note")))


def test_an_adapter_is_published_pointed_and_removed(page: Browser, at: Served, tmp_path: Path) -> None:
    file = tmp_path / "new.safetensors"
    file.write_bytes(encode(at.adapters["acme/one"]))
    page.view("adapters")
    for version in (1, 2):
        choose_file(page, "#upload-file", file)
        page.fill("#upload-name", "zeta/new")
        page.click("#upload button")
        page.until(lambda v=version: page.text("#adapters-status") == f"Published as zeta/new@{v}.")
    page.fill("#filter", "zeta")
    page.until(lambda: page.texts("#rows th") == ["zeta/new@2"])
    page.click("#rows button.link")
    page.until(lambda: page.texts("#versions th") == ["@2", "@1"])
    page.fill("#alias-word", "prod")
    page.fill("#alias-version", "1")
    page.click("#alias-form button")
    page.until(lambda: page.text("#details-status") == "Set prod · 2 versions")
    assert at.registry.aliases("zeta/new") == {"prod": 1}
    for label, told in (
        ("Remove zeta/new@2", "Removed zeta/new@2"),
        ("Remove the alias prod", "Removed the alias prod"),
    ):
        page.click(f"[aria-label='{label}']")
        page.driver.switch_to.alert.accept()
        page.until(lambda told=told: told in page.text("#details-status"))
    assert at.registry.aliases("zeta/new") == {}
    page.click("#remove-all")
    page.driver.switch_to.alert.accept()
    page.until(lambda: page.text("#details-status") == "Removed all versions of zeta/new")
    page.click("#details-close")
    page.until(lambda: not page.texts("#rows th"))
    assert all("404" in entry["message"] for entry in page.log()), "of a name that is gone"


def test_the_hour_and_the_usage_are_shown(at: Served, page: Browser) -> None:
    at.openai().completions.create(model="acme/one", prompt="x", **GREEDY)
    page.view("activity")
    page.until(lambda: len(page.texts("#curves figure")) == 3)
    assert "acme/one" in page.texts("#curve-names .name")
    page.view("usage")
    page.until(lambda: "acme/one" in page.texts("#usage-table tbody th"))
    assert "requests" in page.text("#usage-status")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    adapters = {"acme/moods": make_encoder_adapter(make_bert(), AdapterSpec(rank=4), 0, ("good", "bad", "mixed"))}
    with fronted(tmp_path_factory.mktemp("encoder"), Base(make_bert(), make_tokenizer()), adapters) as found:
        yield found


def test_an_encoders_page_finds_the_nearest_and_names_the_classes(encoder: Served, browser: Browser) -> None:
    browser.open(encoder.url)
    browser.until(lambda: browser.sees("#texts-form"))
    browser.fill("#texts-query", "the true thing")
    browser.fill("#texts-lines", "in\nthe true thing\nerr")
    browser.click("#texts-form button")
    browser.until(lambda: browser.text("#texts-status") == "3 texts, the nearest first.")
    assert browser.texts("#texts-found .text")[0] == "the true thing"
    assert browser.texts("#texts-found .bar")[0] == "cosine1.000"
    browser.fill("#texts-model", "acme/moods")
    browser.click("#texts-classes")
    browser.click("#texts-form button")
    browser.until(lambda: browser.text("#texts-status") == "3 texts.")
    found = encoder.http().post("/v1/classify", json={"model": "acme/moods", "input": "in"}).json()
    assert found["labels"] == ["good", "bad", "mixed"]
    best = max(zip(found["data"][0]["probs"], found["labels"], strict=True))
    assert browser.texts("#texts-found li:first-child .bar")[0] == f"{best[1]}{best[0]:.3f}"


def test_a_key_without_the_admin_scope_changes_nothing(tmp_path: Path, browser: Browser) -> None:
    with served(tmp_path, with_keys=True) as at:
        assert at.keys is not None
        secret, _ = at.keys.add("acme", ["acme/*"])
        browser.open(at.url)
        browser.fill("#key-input", secret)
        browser.press(Keys.ENTER)
        browser.until(lambda: browser.texts("#rows th"))
        browser.view("adapters")
        assert not browser.sees("#upload")
        browser.click("#rows button.link")
        browser.until(lambda: browser.texts("#versions th"))
        assert not browser.sees("#alias-form") and browser.texts("#versions button") == ["Download"]
        browser.click("#details-close")
        browser.run("sessionStorage.clear()")
