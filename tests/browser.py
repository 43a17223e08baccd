# SPDX-License-Identifier: GPL-3.0-or-later
"""
A real browser: Debian's Chromium without a screen, driven through chromedriver by the WebDriver protocol.

It keeps a list of what the browser said (console) and of what it asked for (network), so that a test can look at them.
"""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.parts import PATIENCE_SECONDS, debian_program, eventually, free_port, process

# WebDriver's name of the field that has an element's id.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window."""

    def __init__(self, url: str, capabilities: Mapping[str, Any]) -> None:
        self._url = url
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{answer['sessionId']}"

    def close(self) -> None:
        """End it."""
        self._ask("DELETE", self._session)

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function with this body returns in the page; a promise is waited for."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        """The one element that a CSS selector names first."""
        answer = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        found: str = answer[ELEMENT]
        return found

    def click(self, selector: str) -> None:
        """As with a mouse: it fails where something else is in the way."""
        self._ask("POST", f"{self._session}/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """As with a keyboard."""
        self._ask("POST", f"{self._session}/element/{self.find(selector)}/value", {"text": text})

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def look(self, *, width: int, dark: bool) -> None:
        """From now on, with a window of this width, and in the dark or not."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setScrollbarsHidden", hidden=True)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def messages(self) -> list[str]:
        """What the console said since the last time: violations of the policy, errors, all else."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The URLs that the pages asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._ask("POST", f"{self._session}/se/log", {"type": kind})
        return entries

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None


@contextmanager
def browser(folder: Path, *, script: bool = True) -> Iterator[Browser]:
    """A Chromium of its own, that ends with the block. `script`: may pages run scripts?"""
    driver, program = debian_program("chromedriver"), debian_program("chromium")
    port = free_port()
    words = [
        "--headless=new",
        "--no-sandbox",  # CI runs as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--force-color-profile=srgb",
        f"--user-data-dir={folder / 'profile'}",
    ]
    options: dict[str, Any] = {"binary": program, "args": words, "perfLoggingPrefs": {"enableNetwork": True}}
    if not script:
        options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
    capabilities = {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
    with process(driver, f"--port={port}", log=folder / "chromedriver.log"):
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"{url}/status", timeout=PATIENCE_SECONDS) as answer:
                return bool(json.load(answer)["value"]["ready"])
            return False

        eventually("chromedriver answers", answers)
        one = Browser(url, capabilities)
        one.open("about:blank")  # not Chromium's own start page
        one.requests()
        try:
            yield one
        finally:
            one.close()
