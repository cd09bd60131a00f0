"""The verifying second look: a file that is being written is read again from the disk's side, hashed and compared."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from loratools.errors import InternalError, ResourceError
from loratools.tensors.segments import CHUNK


class Background(threading.Thread):
    """Work on a thread whose exception, if any, comes out of `result`."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=f"loratools-{name}", daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The thread's own part."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
            self._error = error

    def result(self) -> None:
        """Waits for the end; raises what the work raised."""
        self.join()
        if self._error is not None:
            raise self._error


class Rereading:
    """Reads the file at `path` through a descriptor of its own, from `start` to where the writer says it has come.

    It follows behind the writer on a thread of its own (hashing leaves the interpreter free), so that most of its time
    costs nothing. Parts that passed through the writer's hands are compared by CRC-32 with what was handed over.
    """

    def __init__(self, path: Path, start: int, *, digest: bool = True) -> None:
        """Without `digest` only parts that have a checksum are read; the others are for somebody else to compare."""
        self._path, self._start = path, start
        self._parts: SimpleQueue[tuple[int, int | None] | None] = SimpleQueue()
        self._cancelled = False
        self._hash = hashlib.sha256() if digest else None
        self._thread = Background(self._follow, "reread")

    def reached(self, stop: int, checksum: int | None) -> None:
        """The writer has written up to `stop`, and the last part has this CRC-32 (None: not known)."""
        self._parts.put((stop, checksum))

    def cancel(self) -> None:
        """Stops at the next piece, without a result."""
        self._cancelled = True
        self._parts.put(None)

    def sha256(self) -> str | None:
        """The SHA-256 of everything from `start` on, in hexadecimal, or None where none was wanted.

        To be asked once, after the last `reached`; raises InternalError where a part is not as written.
        """
        self._parts.put(None)
        self._thread.result()
        return self._hash.hexdigest() if self._hash else None

    def _follow(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            buffer = memoryview(bytearray(CHUNK))
            at = self._start
            while (part := self._parts.get()) is not None:
                stop, expected = part
                found = 0
                if expected is None and self._hash is None:
                    at = stop
                while at < stop and not self._cancelled:
                    count = os.preadv(descriptor, [buffer[: min(CHUNK, stop - at)]], at)
                    if not count:
                        raise ResourceError("the output became shorter while it was written", path=self._path)
                    if self._hash is not None:
                        self._hash.update(buffer[:count])
                    if expected is not None:
                        found = zlib.crc32(buffer[:count], found)
                    at += count
                if expected is not None and found != expected and not self._cancelled:
                    raise InternalError(f"bytes before {stop} of the output are not those written", path=self._path)
        finally:
            os.close(descriptor)
