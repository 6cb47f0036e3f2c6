"""The view to train: a file is understood or refused, and a job is watched, stopped and compared, by its tenant."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import HOSTILE, Browser
from test_views import choose_file
from tuned_server import ROWS, Tuned, jsonl, tuned

PREFERENCES = [{"prompt": "the", "chosen": "true", "rejected": HOSTILE}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    with tuned(tmp_path_factory.mktemp("trained")) as found:
        yield found


@pytest.fixture
def page(trained: Tuned, browser: Browser) -> Iterator[Browser]:
    browser.open(trained.at.url)
    browser.run("sessionStorage.clear(); sessionStorage.setItem('polyvera.key', arguments[0])", trained.acme.api_key)
    browser.log()
    browser.open(f"{trained.at.url}/?again#train")
    browser.until(lambda: browser.sees("#train"))
    yield browser
    assert browser.log() == []


def write(folder: Path, data: bytes, name: str = "rows.jsonl") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def choose(page: Browser, path: Path) -> None:
    choose_file(page, "#train-file", path)


def lines(page: Browser) -> list[str]:
    return page.texts("#train-lines tbody tr")


def train(page: Browser, name: str, epochs: int) -> None:
    page.until(lambda: page.sees("#train-first"))
    page.fill("#train-name", name)
    page.fill("#train-epochs", str(epochs))
    page.click("#train-form button[type=submit]")
    page.until(lambda: lines(page) and lines(page)[0].startswith(f" {name}"))


def test_what_was_understood_of_a_file_is_shown(trained: Tuned, page: Browser, tmp_path: Path) -> None:
    choose(page, write(tmp_path, jsonl(ROWS)))
    page.until(lambda: page.text("#train-file-status") == "rows.jsonl: 2 rows of messages, answers to learn.")
    assert page.texts("#train-first p") == ["Row 1", "user", "the true thing", "answer", "is this"]
    choose(page, write(tmp_path, jsonl(PREFERENCES), "pairs.jsonl"))
    told = "pairs.jsonl: 1 row of prompt and chosen and rejected, answers to prefer."
    page.until(lambda: page.text("#train-file-status") == told)
    assert page.texts("#train-first p")[-1] == HOSTILE and page.run("return document.images.length") == 0
    page.until(lambda: [file.filename for file in trained.acme.files.list()] == ["pairs.jsonl"])


def test_bad_rows_are_told_one_by_one(page: Browser, tmp_path: Path, trained: Tuned) -> None:
    bad = [*ROWS, {"messages": ROWS[0]["messages"][:1]}, {"messages": []}]
    choose(page, write(tmp_path, jsonl(bad)))
    page.until(lambda: page.text("#train-file-status") == "rows.jsonl was not taken:")
    problems = page.texts("#train-problems li")
    assert len(problems) == 2 and "row 3: the last turn" in problems[0] and problems[1].startswith("row 4: ")
    page.click("#train-form button[type=submit]")
    page.until(lambda: page.text("#train-status") == "Choose a file first.")
    [wanted] = [entry for entry in page.log() if "400" in entry["message"]]
    assert "v1/files" in wanted["message"]


def test_a_job_is_watched_stopped_and_compared(page: Browser, tmp_path: Path) -> None:
    choose(page, write(tmp_path, jsonl(ROWS)))
    train(page, "short", 2)
    page.until(lambda: "succeeded2 of 2" in lines(page)[0])
    assert page.run("return document.querySelectorAll('#train-curves path.curve').length") == 1
    choose(page, write(tmp_path, jsonl(ROWS * 400), "long.jsonl"))
    train(page, "long", 50)
    page.until(lambda: "running" in lines(page)[0])
    page.click("[aria-label='Stop long']")
    page.until(lambda: "cancelled" in lines(page)[0])
    page.click("[aria-label='Compare short']")
    page.until(lambda: page.sees("#duel"))
    sides = page.run("return ['A', 'B'].map((side) => document.querySelector(`#duel-${side}`).value)")
    assert (
        sides[0].startswith("ft/acme/short-") and sides[0].endswith("@2") and sides[1] == sides[0].replace("@2", "@1")
    )


def test_another_tenant_sees_nothing_of_it(trained: Tuned, page: Browser) -> None:
    page.until(lambda: lines(page))
    with trained.at.http(trained.globex.api_key) as http:
        assert http.get("/v1/fine_tuning/curves").json() == {"object": "list", "data": []}
        [file, *_] = trained.acme.files.list()
        assert http.get(f"/v1/files/{file.id}/examples").status_code == 404


def test_jobs_and_their_buttons_fit_a_narrow_window(page: Browser) -> None:
    page.run("location.hash = 'train'")
    page.until(lambda: lines(page))
    page.resize(360, 740)
    try:
        right = "[...document.querySelectorAll('#train-lines *')].map(e => e.getBoundingClientRect().right)"
        assert page.run(f"return Math.max(document.documentElement.scrollWidth, ...{right})") <= 360
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_trains_nothing_offers_no_view(at: object, page: Browser, browser: Browser) -> None:
    browser.open(at.url)  # type: ignore[attr-defined]
    browser.until(lambda: browser.texts("#rows th"))
    assert not browser.sees("#views a[href='#train']")
