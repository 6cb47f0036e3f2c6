"""The page in a real browser, in front of a real server."""

import re
import time
from pathlib import Path

import pytest
from browser import HOSTILE, MANY, Browser
from selenium.webdriver.common.keys import Keys
from tiny_serve import until
from tiny_server import GREEDY, Served
from tokenizers import Regex, decoders

from polyvera.engine.generation.generator import Generator
from polyvera.server.app import PAGE, PAGE_HEADERS, PAGE_KINDS
from polyvera.server.middleware import PAGES

PROMPT = "the true thing"
COLUMNS = {"base": ".column:nth-child(1)", "acme/one": ".column:nth-child(2)", "acme/two": ".column:nth-child(3)"}


def send(page: Browser, prompt: str = PROMPT) -> None:
    page.fill("#prompt", prompt)
    page.press(Keys.ENTER)


def ended(page: Browser, num: int = 1) -> None:
    """Waits until every column has so many turns, and all of them have ended."""
    page.until(lambda: page.run("return document.querySelectorAll('.turn').length") == 3 * num)
    page.until(lambda: page.run("return document.querySelector('#stop').ariaDisabled") == "true")


def answers(page: Browser, turn: int = 1) -> dict[str, str]:
    return {name: page.text(f"{css} .turn:nth-child({turn}) .answer") for name, css in COLUMNS.items()}


def asked(at: Served, model: str, messages: list[dict[str, str]]) -> str:
    found = at.openai().chat.completions.create(model=model, messages=messages, **GREEDY)  # type: ignore[call-overload]
    return str(found.choices[0].message.content)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_files_come_with_a_strict_policy_and_call_nobody_else(at: Served) -> None:
    for file in map(Path, map(str, PAGE.iterdir())):
        answer = at.http().get(PAGES.get(file.name, f"/page/{file.name}"))
        assert answer.status_code == 200 and answer.content == file.read_bytes()
        assert answer.headers["content-type"] == PAGE_KINDS[file.suffix]
        assert answer.headers["content-security-policy"] == PAGE_HEADERS["Content-Security-Policy"]
        assert not any(word in answer.text for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval("))
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_the_adapters_are_listed_with_their_facts(at: Served, page: Browser) -> None:
    shown = dict(zip(page.texts("#rows th"), page.texts("#rows tr"), strict=True))
    assert list(shown)[:4] == ["acme/one@1", "acme/two@1", "evil/one@1", "globex/secret@1"]
    for ref in at.registry.list("acme/"):
        assert f"{ref.num_bytes:,} B" in shown[str(ref)]
    assert "prod @1" in shown["acme/one@1"] and "2026-02-0" in shown["evil/one@1"]
    assert page.text("#served").startswith("tiny, 160 tokens")


def test_adapters_come_page_by_page(page: Browser) -> None:
    page.view("adapters")
    seen: list[str] = []
    for first in range(1, 4 + MANY, 20):
        last = min(first + 19, 4 + MANY)
        page.until(lambda first=first, last=last: page.text("#place") == f"{first}–{last} of {4 + MANY}")
        seen += page.texts("#rows th")
        if last < 4 + MANY:
            page.click("#more")
    assert seen == sorted(set(seen)) and len(seen) == 4 + MANY and not page.sees("#more")
    page.click("#before")
    page.until(lambda: page.sees("#more"))
    assert page.text("#adapters-status") == f"{4 + MANY} adapters"


def test_the_list_is_searched_and_sorted(page: Browser) -> None:
    page.view("adapters")
    page.fill("#filter", "A01 many")
    page.until(lambda: page.texts("#rows th") == [f"many/a01{i}@1" for i in range(10)])
    page.run("const s = document.querySelector('#sort'); s.value = '-name'; s.dispatchEvent(new Event('change'))")
    page.until(lambda: page.texts("#rows th") == [f"many/a01{i}@1" for i in reversed(range(10))])
    page.fill("#filter", "nobody/")
    page.until(lambda: not page.texts("#rows th"))
    assert page.text("#adapters-status") == "No adapter that you may see has “nobody/” in its name."


def test_three_streamed_answers_are_the_apis_own(at: Served, page: Browser) -> None:
    send(page)
    ended(page)
    first = {name: asked(at, name, [user(PROMPT)]) for name in COLUMNS}
    assert answers(page) == first and len(set(first.values())) == 3
    send(page, "and in er")
    ended(page, 2)
    for name, found in answers(page, 2).items():
        history = [user(PROMPT), {"role": "assistant", "content": first[name]}, user("and in er")]
        assert found == asked(at, name, history), "a column tells the model its own conversation"
    page.click("#clear")
    assert page.texts(".turn") == []


def test_a_button_of_the_list_chooses_an_adapter(at: Served, page: Browser) -> None:
    page.view("adapters")
    page.click("[aria-label='Chat with globex/secret as B']")
    assert page.text("#adapters-status") == "Adapter B is now globex/secret."
    page.view("chat")
    send(page)
    ended(page)
    assert answers(page)["acme/two"] == asked(at, "globex/secret", [user(PROMPT)])
    assert "globex/secret@1" in page.text(f"{COLUMNS['acme/two']} .note")


def test_plain_text_goes_on_from_the_text(at: Served, page: Browser) -> None:
    page.click("#plain")
    send(page)
    ended(page)
    for name, found in answers(page).items():
        assert found == at.openai().completions.create(model=name, prompt=PROMPT, **GREEDY).choices[0].text


def test_the_live_view_shows_the_batch_and_stop_ends_it(at: Served, page: Browser, slow: None) -> None:
    page.fill("#max-tokens", "130")
    send(page)
    page.until(lambda: len(page.texts("#legend li")) == 3)
    assert sorted(page.texts("#legend .name")) == ["acme/one@1", "acme/two@1", "base"]
    assert sorted(filter(None, page.texts("#cells .tag"))) == sorted(page.texts("#legend .tag"))
    assert len(page.texts("#cells .tag")) == at.engine.limits.max_rows
    assert page.text("#live-status").startswith("3 of 8 rows in use, for 2 adapters and the base.")
    page.until(lambda: all(answers(page).values()))
    page.click("#stop")
    ended(page)
    assert page.text("#chat-status") == "Stopped."
    assert all("stopped" in page.text(f"{css} .note") for css in COLUMNS.values())
    until(lambda: not at.engine.stats().running)
    page.until(lambda: not page.texts("#legend li"))
    assert {"acme/one@1", "acme/two@1"} <= set(page.texts("#resident .name")), "they keep their slots"
    assert "answer tokens" in page.text("#totals")


def test_nothing_is_asked_while_the_tab_is_hidden_or_paused(page: Browser) -> None:
    polls = "return performance.getEntriesByType('resource').filter(e => e.name.endsWith('/v1/live')).length"
    hide = (
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.view("activity")
    page.until(lambda: page.run(polls) >= 2)
    page.run(hide, True)
    before = page.run(polls)
    time.sleep(1.3)
    assert page.run(polls) == before
    page.run(hide, False)
    page.until(lambda: page.run(polls) > before + 1)
    page.click("#pause")
    before = page.run(polls)
    time.sleep(1.3)
    assert page.run(polls) == before and page.text("#live-status") == "Paused."


def test_hostile_text_is_text(at: Served, page: Browser) -> None:
    assert f"{HOSTILE} 0.500" in page.texts("#rows td[data-title=Scores] .item")
    tokenizer = at.engine.tokenizer.backend_tokenizer
    before = tokenizer.decoder
    tokenizer.decoder = decoders.Sequence([before, decoders.Replace(Regex("[^\ufffd]"), HOSTILE)])
    try:
        send(page, HOSTILE)
        ended(page)
    finally:
        tokenizer.decoder = before
    assert all(HOSTILE in answer for answer in answers(page).values())
    assert set(page.texts(".said")) == {HOSTILE}
    assert page.run("return document.querySelectorAll('img, #columns script').length") == 0


def test_by_keyboard_alone(at: Served, page: Browser) -> None:
    page.open(at.url)
    page.until(lambda: page.texts("#rows th"))
    page.press(Keys.TAB)
    assert page.focus() == "Skip to the prompt"
    page.press(Keys.ENTER)
    page.tab_to("max-tokens")
    page.press(Keys.CONTROL, "a", Keys.NULL, str(GREEDY["max_tokens"]))
    page.tab_to("prompt", Keys.SHIFT)
    page.press("the", Keys.SHIFT, Keys.ENTER, Keys.NULL, "true", Keys.CONTROL, Keys.ENTER)
    ended(page)
    assert answers(page)["acme/two"] == asked(at, "acme/two", [user("the\ntrue")])
    assert page.focus() == "prompt"
    page.tab_to("Adapters", Keys.SHIFT)
    page.press(Keys.ENTER)
    page.tab_to("Chat with globex/secret as A", most=80)
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(Keys.ENTER)
    assert page.run("return document.querySelector('#adapter-A').value") == "globex/secret"
    unnamed = (
        "return [...document.querySelectorAll('input, textarea, button, [role=log]')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    assert page.run(unnamed) == 0


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
def test_nothing_is_wider_than_the_window_or_higher_than_three(page: Browser, width: int, height: int) -> None:
    page.resize(width, height)
    try:
        for view in ("duel", "adapters", "activity", "usage", "chat"):
            page.view(view)
            assert page.run("return document.documentElement.scrollWidth") <= width, view
            assert page.run("return document.documentElement.scrollHeight") <= 3 * height, view
        page.fill("#adapter-A", "n" * 200)
        send(page, "w" * 40)
        ended(page)
        page.click("#key summary")
        assert page.run("return document.documentElement.scrollWidth") <= width
        columns = page.run("return [...document.querySelectorAll('.column')].map(e => e.getBoundingClientRect().x)")
        assert len(set(columns)) == (1 if width == 360 else 3)
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert ["404" in entry["message"] for entry in page.log()] == [True], "of the name that nobody published"


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_the_routes_are_listed_with_what_they_take(at: Served, page: Browser, width: int, height: int) -> None:
    paths = at.http().get("/openapi.json").json()["paths"]
    page.open(f"{at.url}/docs")
    page.resize(width, height)
    try:
        page.until(lambda: page.texts("#routes summary"))
        told = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
        assert set(page.texts("#routes summary")) == told
        assert page.run("return document.documentElement.scrollHeight") <= 3 * height
        page.fill("#filter", "post /tokenize")
        page.click("#routes details:not([hidden]) summary")
        page.until(lambda: page.texts("#routes details:not([hidden]) th"))
        assert {"prompt", "messages"} <= set(page.texts("#routes details:not([hidden]) th"))
        assert page.run("return document.documentElement.scrollWidth") <= width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_model_without_a_template_is_asked_in_plain_text(
    at: Served, page: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at.engine.tokenizer, "chat_template", None)
    send(page)
    ended(page)
    for name, found in answers(page).items():
        assert found == at.openai().completions.create(model=name, prompt=PROMPT, **GREEDY).choices[0].text
    assert page.run("return document.querySelector('#plain').checked") and page.sees("#plain-hint")
    assert all("400" in entry["message"] for entry in page.log())


def test_an_encoder_has_no_chat(at: Served, page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.sees("#ask") and not page.sees("#texts")
    monkeypatch.setattr(Generator, "generation", None)
    page.open(at.url)
    page.until(lambda: page.sees("#texts-form"))
    assert "is an encoder, which answers /v1/embeddings and /v1/classify" in page.text("#chat-closed")
    assert not page.sees("#ask") and not page.sees("#views a[href='#duel']")
    page.view("adapters")
    assert page.sees("#table")
    assert not page.log()


def test_a_key_is_asked_for_and_shows_its_own_adapters(guarded: Served, browser: Browser) -> None:
    assert guarded.keys is not None
    secret, key = guarded.keys.add("acme", ["acme/*"])
    browser.open(guarded.url)
    browser.until(lambda: browser.text("#notice") == "This server needs an API key.")
    browser.until(lambda: browser.focus() == "key-input")
    for wrong, told in (("pv-wrong", "unknown or has expired"), ("pv wrong", "without spaces")):
        browser.fill("#key-input", wrong)
        browser.press(Keys.ENTER)
        browser.until(lambda told=told: told in browser.text("#notice"))
        assert browser.texts("#rows tr") == []
    browser.fill("#key-input", secret)
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.texts("#rows th") == ["acme/one@1", "acme/two@1"])
    assert not browser.sees("#notice") and not browser.sees("#totals-box")
    assert browser.run("return [Object.values(sessionStorage), localStorage.length, document.cookie]") == [
        [secret],
        0,
        "",
    ]
    send(browser)
    ended(browser)
    assert "may call adapters only" in browser.text(f"{COLUMNS['base']} .note")
    assert answers(browser)["acme/one"] != "" and answers(browser)["acme/two"] != ""
    log = [entry["message"] for entry in browser.log()]
    assert {"401", "403"} == {status for line in log for status in re.findall(r"status of (\d+)", line)}, log
    browser.view("adapters")
    assert not browser.sees("#upload")
    guarded.keys.remove(key.id)
    browser.click("#refresh")
    browser.until(lambda: "unknown or has expired" in browser.text("#notice"))
    browser.until(lambda: browser.texts("#rows tr") == [])
    browser.click("#key-forget")
    browser.until(lambda: browser.text("#notice") == "This server needs an API key.")
    assert browser.texts(".turn") == [] and browser.run("return sessionStorage.length") == 0
