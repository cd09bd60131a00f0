"""A headless Chromium, spoken to over two pipes in its DevTools protocol: enough to load a page and to ask it."""

import base64
import fcntl
import json
import os
import shutil
import signal
import threading

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One process with one page at a time; `faults` are the page's console errors, exceptions and requests."""

    def __init__(self, folder):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", "--remote-debugging-pipe"),
        ]
        # It reads 3 and writes 4: first out of the way, for one of the pipes may have these numbers now.
        reads, writes = (fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 100) for pipe in (theirs_in, theirs_out))
        silent = [(os.POSIX_SPAWN_OPEN, at, os.devnull, os.O_RDWR, 0) for at in (0, 1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4)]
        self.process = os.posix_spawn(
            CHROMIUM, command, {**os.environ, "HOME": str(folder)}, file_actions=[*silent, *pipes]
        )
        for pipe in (theirs_in, theirs_out, reads, writes):
            os.close(pipe)
        self.out = os.fdopen(ours_out, "wb", buffering=0)
        self.incoming = os.fdopen(ours_in, "rb")
        self.watch = threading.Timer(60, os.kill, (self.process, signal.SIGKILL))
        self.watch.daemon = True
        self.watch.start()
        self.unread = b""
        self.number = 0
        self.session = None
        self.events = []

    def close(self):
        self.watch.cancel()
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.out.close()
        self.incoming.close()

    def _receive(self):
        while b"\0" not in self.unread:
            more = self.incoming.read1(1 << 16)
            assert more, "the browser went away"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        asked = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            asked["sessionId"] = self.session
        self.out.write(json.dumps(asked).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == asked["id"]:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def open(self, path, *, width=1440, height=900, scripts=True, scheme="light"):
        """Load a file in a new page of a size."""
        self.session = None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def ask(self, expression):
        """The value of an expression in the page, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def faults(self):
        """What went wrong or out: console errors, exceptions, and requests for anything but the page and its data."""
        self.ask("0")
        found = []
        for event in self.events:
            method, said = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(said["exceptionDetails"]["text"])
            elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
                found.append(said["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and said["type"] == "error":
                found.append(str(said["args"]))
            elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith(("data:", "file:")):
                found.append(f"requests {said['request']['url']}")
        return found

    def picture(self, path):
        """A screenshot of the whole page, for people."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
