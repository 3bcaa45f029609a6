"""A headless Chromium, driven through the DevTools protocol over its pipe: no package, no port, no network."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 60.0


def program() -> str | None:
    """Where Chromium is."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """A page in the browser, with what it logged and asked for."""

    def __init__(self, send: Callable[..., dict[str, Any]], events: list[dict[str, Any]]) -> None:
        self.send = send
        self._events = events

    def open(
        self, page: Path | str, *, width: int = 1280, height: int = 1000, dark: bool = False, script: bool = True
    ) -> None:
        """Show a file or an address, at a size and in a scheme of colours."""
        self._events.clear()
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        address = page if isinstance(page, str) else page.resolve().as_uri()
        loader = self.send("Page.navigate", url=address)["loaderId"]
        end = time.monotonic() + _SECONDS
        while not any(self._is_load(event, loader) for event in self._events):
            assert time.monotonic() < end, "the page did not load"
            time.sleep(0.02)
            with suppress(RuntimeError):  # between two pages there is none
                self.send("Page.setLifecycleEventsEnabled", enabled=True)
        self.evaluate("1")

    @staticmethod
    def _is_load(event: dict[str, Any], loader: str) -> bool:
        found = event["params"]
        return event["method"] == "Page.lifecycleEvent" and (found["name"], found["loaderId"]) == ("load", loader)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; that of a promise where it is one."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def place_of(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window, to which the page is scrolled."""
        name = json.dumps(selector)
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({name}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return tuple(found)

    def point(self, selector: str, across: float = 0.5, down: float = 0.5, *, click: bool = False) -> None:
        """Move the mouse to a part of an element, and click there."""
        left, top, width, height = self.place_of(selector)
        at = {"x": left + across * width, "y": top + down * height}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def choose(self, selector: str, value: str) -> None:
        """Give a control another value, as a user does."""
        target, wanted = json.dumps(selector), json.dumps(value)
        self.evaluate(
            f"(() => {{ const e = document.querySelector({target}); e.value = {wanted};"
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def text(self, selector: str) -> str:
        """Of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def wait_for(self, expression: str) -> None:
        """Until it is true."""
        end = time.monotonic() + _SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, without what is in the page itself."""
        asked = [event["params"]["request"]["url"] for event in self._events_of("Network.requestWillBeSent")]
        return [address for address in asked if not address.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """Of the console and of scripts."""
        own = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for name in own for event in self._events_of(name)]

    def _events_of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event["method"] == method]

    def picture(self, path: Path) -> Path:
        """The whole page as a PNG file."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def printed(self) -> bytes:
        """The page as a PDF file, on A4 as its style says."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A browser with one tab.

    Args:
        profile: A folder for it.
    """
    found = program()
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    to_browser, from_browser = os.pipe(), os.pipe()
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    words += ["--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe", "about:blank"]

    def at_three_and_four() -> None:  # where the browser looks for its pipe
        ends = [os.dup(to_browser[0]), os.dup(from_browser[1])]
        for number, end in zip((3, 4), ends, strict=True):
            os.dup2(end, number)

    process = subprocess.Popen(
        [found, *words],
        close_fds=False,
        preexec_fn=at_three_and_four,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    events: list[dict[str, Any]] = []
    numbers = iter(range(1, 10**9))
    with os.fdopen(to_browser[1], "wb", 0) as writer, os.fdopen(from_browser[0], "rb") as reader:
        rest = b""

        def send(method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
            nonlocal rest
            number = next(numbers)
            message = {"id": number, "method": method, "params": parameters} | (
                {"sessionId": session} if session else {}
            )
            writer.write(json.dumps(message).encode() + b"\0")
            while True:
                while b"\0" not in rest:
                    more = reader.read1(1 << 20)
                    assert more, "the browser ended"
                    rest += more
                line, _, rest = rest.partition(b"\0")
                answer = json.loads(line)
                if answer.get("id") == number:
                    if "error" in answer:
                        raise RuntimeError(answer)
                    result: dict[str, Any] = answer["result"]
                    return result
                if "method" in answer:
                    events.append(answer)

        try:
            (target,) = (own["targetId"] for own in send("Target.getTargets")["targetInfos"] if own["type"] == "page")
            session = send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            tab = Tab(lambda method, **parameters: send(method, session, **parameters), events)
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.send(f"{domain}.enable")
            yield tab
        finally:
            process.kill()
            process.wait()
