"""Headless Chromium through chromedriver's own HTTP interface: open a file, run a script in it, read the console, take
a picture.

Debian: apt-get install chromium chromium-driver. On other systems CHROMEDRIVER and CHROMIUM name the two programs.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

MISSING = (
    "{} is not installed, and the report is tested in it: apt-get install chromium chromium-driver (or set {} to where"
    " it is)"
)


def program(variable: str, *names: str) -> str:
    """Path of the first of `names` that is there. Without one, CI fails; a user's machine skips and says what to
    install.
    """
    found = os.environ.get(variable) or next((path for name in names if (path := shutil.which(name))), None)
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING.format(names[0], variable))
    return found


class Browser:
    """One window of width x height. dark: what prefers-color-scheme says."""

    def __init__(self, width: int = 1200, height: int = 900, dark: bool = False, touch: bool = False):
        driver, chromium = (
            program("CHROMEDRIVER", "chromedriver"),
            program("CHROMIUM", "chromium", "chromium-browser", "google-chrome"),
        )
        self.driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started = (re.search(r"started successfully on port (\d+)", line) for line in self.driver.stdout)
        self.base = f"http://127.0.0.1:{next(found[1] for found in started if found)}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        options = {"binary": chromium, "args": arguments}
        try:
            self._begin(options, width, height, dark, touch)
        except BaseException:
            self.driver.kill()
            raise

    def _begin(self, options: dict, width: int, height: int, dark: bool, touch: bool) -> None:
        session = self.ask(
            "POST",
            "/session",
            {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}},
        )
        self.base += f"/session/{session['sessionId']}"
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def ask(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return json.loads(response.read())["value"]

    def cdp(self, command: str, **parameters):
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, file: Path) -> None:
        self.ask("POST", "/url", {"url": file.resolve().as_uri()})

    def run(self, script: str):
        """The value that the body of a function, `script`, returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """Everything of level warning and above so far."""
        return [
            entry["message"]
            for entry in self.ask("POST", "/se/log", {"type": "browser"})
            if entry["level"] in ("WARNING", "SEVERE")
        ]

    def picture(self, file: Path, whole: bool = True) -> None:
        """A PNG of the page, as long as it is."""
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        try:
            self.ask("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
