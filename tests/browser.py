"""A real Chromium to look at pages with: what they show, what they ask the network for, and what they complain of.

It speaks DevTools over a pipe (`--remote-debugging-pipe`): messages of JSON, each ended by a zero byte. Every name resolves to
nothing, so that what a page tried is in `requests`, and went nowhere.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    _CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)
# What a browser does on its own account is not the page's doing.
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


class Browser:
    """One page; use it as a context."""

    def __init__(self, profile: Path) -> None:
        assert _CHROMIUM is not None
        # Chromium reads what it is told from descriptor 3, and answers to 4.
        told, self._tell = os.pipe()
        self._hear, heard = os.pipe()
        script = f'exec "$0" "$@" 3<&{told} 4>&{heard}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, _CHROMIUM, *_QUIET, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(told, heard),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(told)
        os.close(heard)
        self._unread = b""
        self._count = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = next(
            each["targetId"]
            for each in self.send("Target.getTargets")["targetInfos"]
            if each["type"] == "page"
        )
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.send("Browser.close")
        self._process.wait()
        os.close(self._tell)
        os.close(self._hear)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and return its answer; what happened meanwhile is kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._tell, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path, scheme: str = "light", width: int = 1280, height: int = 900) -> None:
        """Open the file as a double click does, and wait until all of it is there."""
        self._events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(each["method"] == "Page.loadEventFired" for each in self._events):
            self._events.append(self._next())

    def ask(self, expression: str) -> Any:
        """Return what the expression is, in the page; of a promise, what it keeps."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, x: float, y: float, click: bool = False) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file: Path, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    @property
    def requests(self) -> list[str]:
        """What the page asked for, itself included."""
        asked = [each for each in self._events if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in asked]

    @property
    def complaints(self) -> list[str]:
        """Errors of scripts, and what the page's policy forbade."""
        found = []
        for each in self._events:
            if each["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(each["params"]["exceptionDetails"]))
            elif each["method"] == "Log.entryAdded":
                found.append(each["params"]["entry"]["text"])
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = os.read(self._hear, 1 << 20)
            assert more, "Chromium is gone"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer
