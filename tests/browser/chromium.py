"""A headless Chromium without background requests of its own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

WAIT_SECONDS = 20.0  # far over what any step takes, so that only a hang fails

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the sandbox does not start as root, which is what containers run as
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers have 64 MB of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """One tab. `wait` polls a condition, and raises TimeoutException when that takes too long."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load `url` in a fresh tab state: no storage of this origin, no log, this size in CSS pixels."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.errors()
        self.requests()
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script: str, *arguments: object) -> Any:
        """What the body of a JavaScript function returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, element_id: str) -> str:
        """The text of an element, also where CSS hides it."""
        text: str = self.run("return document.getElementById(arguments[0]).textContent", element_id)
        return text

    def roles_and_names(self, heading: str) -> list[tuple[str, str]]:
        """What a screen reader finds on the page, once it has this heading: each element's role and name.

        Chromium builds this tree a moment after the page, and keeps it only where it is enabled: else each
        look begins with an empty one, which may never be complete on a busy machine.
        """
        found: list[tuple[str, str]] = []

        def complete() -> bool:
            nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
            seen = [node for node in nodes if not node["ignored"]]
            found[:] = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in seen]
            return ("heading", heading) in found

        self.driver.execute_cdp_cmd("Accessibility.enable", {})
        try:
            self.wait(complete, f"a screen reader finds {heading!r}")
        finally:
            self.driver.execute_cdp_cmd("Accessibility.disable", {})
        return found

    def click(self, element_id: str) -> None:
        self.driver.find_element("id", element_id).click()

    def wait(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: condition(), what)

    def errors(self) -> list[str]:
        """The errors on the console since the last call."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """The URLs that were requested since the last call, WebSockets included."""
        urls: list[str] = []
        for entry in self._log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                urls.append(message["params"]["url"])
        return urls

    def _log(self, kind: str) -> list[dict[str, Any]]:
        # The driver's own get_log has no types.
        entries: list[dict[str, Any]] = self.driver.execute("getLog", {"type": kind})["value"]
        return entries


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser with an empty profile, and with more `flags`. Browser and profile are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for flag in (*_FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # With the driver's path given, selenium does not try to download one.
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
