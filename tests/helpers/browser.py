"""A headless Chromium for tests, driven over a pipe by the DevTools protocol: no server, no port, no driver program."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 60.0


class Browser:
    """One page. Attributes: `errors`, what its console and its scripts complained of; `requests`, what it asked for."""

    def __init__(self, program: str) -> None:
        """Start `program`, a Chromium."""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="diffup-chromium-")
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={self._profile}",
        ]  # fmt: skip
        # The browser reads descriptor 3 and writes descriptor 4.
        line = 'exec "$@" 3<&$IN 4>&$OUT'.replace("$IN", str(to_child)).replace("$OUT", str(from_child))
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", *command],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._number, self._session = b"", 0, ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        """The browser."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, page: Path | str, *, width: int = 1280, height: int = 900, phone: bool = False) -> float:
        """Load a file or an address; returns the seconds until everything was there."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        began = time.monotonic()
        self._call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            time.sleep(0.02)
        return time.monotonic() - began

    def visit(self, address: str, *, width: int = 1500, height: int = 900) -> None:
        """Load a page of a server; wait for what it shows with `until`."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Until an expression in the page is true."""
        limit = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < limit, f"not within {seconds} s: {condition}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Press the mouse on an element."""
        self.drag([self.hover(selector)])

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first of some places in the window, move it along the others, and let it go."""
        kinds = ["mouseMoved", "mousePressed", *["mouseMoved"] * len(points[1:]), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [points[0], *points, points[-1]]):
            pressed = {"button": "left", "buttons": 1, "clickCount": 1} if kind != kinds[0] else {}
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def swipe(self, points: Sequence[tuple[float, float]]) -> None:
        """Put a finger on the first of some places in the window, move it along the others, and lift it."""
        self._call("Emulation.setTouchEmulationEnabled", enabled=True)
        kinds = ["touchStart", *["touchMove"] * len(points[1:])]
        for kind, (x, y) in zip(kinds, points):
            self._call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, by their names or characters."""
        for key in keys:
            text = {"Enter": "\r", "Tab": ""}.get(key, key if len(key) == 1 else "")
            code = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "Delete": 46} | {
                f"Arrow{name}": 37 + i for i, name in enumerate(("Left", "Up", "Right", "Down"))
            }
            what = {"key": key, "text": text, "windowsVirtualKeyCode": code.get(key, ord(key[0]))}
            self._call("Input.dispatchKeyEvent", type="keyDown", **what)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def upload(self, selector: str, *paths: Path) -> None:
        """Choose files in a file input."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        files = [str(path.resolve()) for path in paths]
        self._call("DOM.setFileInputFiles", files=files, objectId=found["result"]["objectId"])

    def tap(self, selector: str) -> None:
        """Touch an element with a finger; the page must have been opened as a phone."""
        x, y = self._place(selector)
        self._call("Emulation.setTouchEmulationEnabled", enabled=True)
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def until(self, expression: str) -> None:
        """Wait until an expression of the page is true."""
        limit = time.monotonic() + SECONDS
        while not self.run(expression):
            assert time.monotonic() < limit, f"never true: {expression}"
            time.sleep(0.02)

    def hover(self, selector: str) -> tuple[float, float]:
        """Move the mouse over an element; returns where that is."""
        x, y = self._place(selector)
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def _place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, which is scrolled into view."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'}); "
            "const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return found[0], found[1]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is to be seen, or the whole page, as a PNG."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + SECONDS
        while True:
            answer = self._next(limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found
            self._note(answer)

    def _next(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, limit - time.monotonic()))
            content = os.read(self._in, 1 << 20) if ready else b""
            if not content:
                raise AssertionError("the browser does not answer")
            self._buffer += content
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(params["entry"]))
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(str(params["request"]["url"]))
