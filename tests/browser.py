"""Chromium without a window, driven over the WebDriver protocol by ChromeDriver."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1400,1000",
]
TIMEOUT_S = 60


def wait_for(read: Callable[[], Any], is_ready: Callable[[Any], bool] = bool) -> Any:
    """Call `read` until its result is ready, and return it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_ready(result := read()):
        assert time.monotonic() < deadline, f"still {result!r} after {TIMEOUT_S} s"
        time.sleep(0.2)
    return result


class Browser:
    """A browser that is closed at the end of its with block."""

    def __enter__(self) -> "Browser":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.profile = tempfile.mkdtemp()
        command, silent = ["chromedriver", f"--port={port}"], subprocess.DEVNULL
        self.driver = subprocess.Popen(command, stdout=silent, stderr=silent)
        self.address = f"http://127.0.0.1:{port}"
        wait_for(self._is_listening)
        options = {
            "args": [*ARGUMENTS, f"--user-data-dir={self.profile}"],
            "binary": shutil.which("chromium"),
        }
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        session = self._call("POST", "/session", {"capabilities": capabilities})
        self.address += f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *_: object) -> None:
        self._call("DELETE", "")
        self.driver.terminate()
        self.driver.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _is_listening(self) -> bool:
        try:
            return self._call("GET", "/status")["ready"]
        except urllib.error.URLError:
            return False

    def _call(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def find(self, css: str) -> list[str]:
        """Return the ids of the elements that match a CSS selector."""
        found = self._call("POST", "/elements", {"using": "css selector", "value": css})
        return [next(iter(element.values())) for element in found]

    def type(self, element: str, text: str) -> None:
        """Type into an element; into a file input, the path of a file."""
        self._call("POST", f"/element/{element}/value", {"text": text})

    def run(self, script: str) -> Any:
        """Run JavaScript and return what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def save_screenshot(self, path: Path | str) -> None:
        Path(path).write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
