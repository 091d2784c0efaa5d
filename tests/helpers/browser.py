"""A Chromium without a window, driven over the pipe of its DevTools protocol, as a user's hands and eyes."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
import warnings

import pytest

# What the browser itself would ask the net for, a first start's pages, and parts that containers lack.
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
)  # fmt: skip
# Of keys that write nothing, and the text of those that do more than write.
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " ")}
_SHIFT = 8
_SECONDS = 60


def chromium():
    """The path of a Chromium; without one the test is skipped, which is told."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing = "the page was not tried in a browser: there is no chromium here"
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # told, and no error
            warnings.warn(missing, stacklevel=2)
        pytest.skip(missing)
    return found


class Browser:
    """One tab.

    Args:
      to, from_: file numbers of the pipe's ends.

    Attributes:
      events: what the browser has told without being asked, in order.
    """

    def __init__(self, to, from_):
        self._to, self._from, self._rest = to, from_, b""
        self._numbers, self._session, self.events = itertools.count(1), None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method, **values):
        """The result of a command."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": values}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while (told := self._message()).get("id") != number:
            self.events.append(told)
        assert "error" not in told, f"{method}: {told['error']['message']}"
        return told["result"]

    def _message(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], _SECONDS)
            assert ready, "the browser does not answer"
            got = os.read(self._from, 1 << 20)
            assert got, "the browser is gone"
            self._rest += got
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def run(self, script):
        """The value of an expression of the page, waited for where it is a promise."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script):
        """The value of an expression once it is true."""
        end = time.monotonic() + _SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; the page: {self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def open(self, address):
        """Opens an address, anew where only what stands behind its # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def looks(self, width=1200, height=900, scheme="light"):
        """Size of the window in CSS pixels, and whether the user has asked for dark colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key, shift=False):
        """A key, pressed and let go."""
        code, text = _KEYS[key]
        named = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        named["modifiers"] = _SHIFT if shift else 0
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def write(self, text):
        """Types text where the keyboard is."""
        self.call("Input.insertText", text=text)

    def tree(self):
        """What a screen reader is told: of each node role, name and properties, in the order of reading."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        by_number, found, waiting = {node["nodeId"]: node for node in nodes}, [], [nodes[0]["nodeId"]]
        while waiting:
            node = by_number[waiting.pop()]
            waiting += [number for number in reversed(node.get("childIds", ())) if number in by_number]
            if not node["ignored"]:
                role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
                properties = {one["name"]: one["value"].get("value") for one in node.get("properties", ())}
                found.append({"role": role, "name": name} | properties)
        return found

    def told(self, method):
        """Parameters of the events of a kind."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def picture(self):
        """The window's content as the bytes of a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextlib.contextmanager
def browsing(profile):
    """A browser whose files lie in a folder, ended at the end."""
    program = chromium()
    theirs, ours = os.pipe(), os.pipe()
    # It reads at 3 and writes at 4; what is moved there must not lie there.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs[0], ours[1])]
    os.close(theirs[0])
    os.close(ours[1])
    with open(profile / "chromium.log", "wb") as log:
        moves = ['exec 3<&"$0" 4>&"$1"; shift; exec "$@"', *map(str, ends)]
        command = ["bash", "-c", *moves, program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, pass_fds=ends, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    for end in ends:
        os.close(end)
    try:
        browser = Browser(theirs[1], ours[0])
        yield browser
        browser._session = None
        browser.call("Browser.close")
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(theirs[1])
        os.close(ours[0])
