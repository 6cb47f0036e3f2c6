"""A real browser without a window, and what a reader does with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from tiny_serve import LONGEST_WAIT

HOSTILE = "<img src=x onerror=alert(1)>"
MANY = 120  # adapters of one team
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900")


@dataclass(frozen=True)
class Browser:
    """Chromium at a page."""

    driver: Any

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def text(self, css: str) -> str:
        """The whole text of an element, as it is in the document."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", css))

    def texts(self, css: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css))

    def sees(self, css: str) -> bool:
        return bool(self.driver.find_element(By.CSS_SELECTOR, css).is_displayed())

    def click(self, css: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, css).click()

    def fill(self, css: str, text: str) -> None:
        field = self.driver.find_element(By.CSS_SELECTOR, css)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def view(self, name: str) -> None:
        """Goes to a view by its link."""
        self.click(f"#views a[href='#{name}']")

    def focus(self) -> str:
        """The id of what has the focus, or its label, or its text."""
        return str(self.run("const e = document.activeElement; return e.id || e.ariaLabel || e.textContent.trim()"))

    def tab_to(self, name: str, *keys: str, most: int = 60) -> None:
        """By the Tab key alone; keys: held with it."""
        for _ in range(most):
            if self.focus() == name:
                return
            chain = ActionChains(self.driver)  # to nobody: a field for files takes keys for a path
            for key in keys:
                chain.key_down(key)
            chain.send_keys(Keys.TAB)
            for key in keys:
                chain.key_up(key)
            chain.perform()
        raise AssertionError(f"{most} times Tab did not reach {name}")

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.driver, LONGEST_WAIT, 0.02, [StaleElementReferenceException]).until(lambda _: condition())

    def resize(self, width: int, height: int) -> None:
        given = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", given)

    def log(self) -> list[dict[str, Any]]:
        """What the console has told since the last call."""
        return list(self.driver.get_log("browser"))


@contextmanager
def browsing() -> Iterator[Browser]:
    """Skips where there is no Chromium with its driver."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()
