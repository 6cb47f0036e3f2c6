"""One browser and one server for the tests of the page."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from browser import HOSTILE, MANY, Browser, browsing
from tiny_server import GREEDY, Served, served

from polyvera.server.answers import AnswerStream


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as found:
        found.registry.alias("acme/one", "prod", 1)
        scored = replace(found.adapters["acme/one"], scores={HOSTILE: 0.5}, created="2026-02-03T04:05:06+00:00")
        found.registry.put("evil/one", scored)
        for i in range(MANY):
            found.registry.put(f"many/a{i:03}", found.adapters["acme/one"])
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("guarded"), with_keys=True) as found:
        yield found


@pytest.fixture
def page(at: Served, browser: Browser) -> Iterator[Browser]:
    """The page of the open server, listed; the console has told nothing when it is left."""
    browser.log()
    for _ in range(2):  # what a test before this one has written is kept in the tab
        browser.open(at.url)
        browser.run("sessionStorage.clear()")
    browser.until(lambda: browser.texts("#rows th"))
    browser.fill("#max-tokens", str(GREEDY["max_tokens"]))
    yield browser
    assert browser.log() == []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token takes its time."""
    hop = AnswerStream._hop

    def slowly(self: AnswerStream, i: int, output: Any) -> None:
        time.sleep(0.05)
        hop(self, i, output)

    monkeypatch.setattr(AnswerStream, "_hop", slowly)
