"""The verifying second look: a file that is being written is read again from the disk's side, hashed and compared."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from loratools.errors import InternalError, ResourceError
from loratools.tensors.segments import CHUNK

MOST_KEPT = 32 << 20
"""How many bytes the writer may have handed over that were not read again yet."""


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
    costs nothing. Parts that passed through the writer's hands are compared with what was handed over, which is kept
    until then; a writer that is too far ahead waits.
    """

    def __init__(self, path: Path, start: int, *, digest: bool = True) -> None:
        """Without `digest` only parts that were handed over are read; the others are for somebody else to compare."""
        self._path = path
        self._parts: SimpleQueue[tuple[int, int, bytes | None] | None] = SimpleQueue()
        self._at = start
        self._room = threading.Condition()
        self._kept = 0
        self._ended = False
        self._cancelled = False
        self._hash = hashlib.sha256() if digest else None
        self._thread = Background(self._follow, "reread")

    def reached(self, stop: int, data: bytes | None) -> None:
        """The writer has written up to `stop`, and the last part is `data` (None: copied by the kernel)."""
        begin, self._at = self._at, stop
        if data is None and self._hash is None:
            return
        if data is not None:
            with self._room:
                self._room.wait_for(lambda: self._kept < MOST_KEPT or self._ended)
                self._kept += len(data)
        self._parts.put((begin, stop, data))

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
            buffer = bytearray(CHUNK)
            while (part := self._parts.get()) is not None:
                begin, stop, data = part
                at = begin
                while at < stop and not self._cancelled:
                    count = os.preadv(descriptor, [memoryview(buffer)[: stop - at]], at)
                    if not count:
                        raise ResourceError("the output became shorter while it was written", path=self._path)
                    self._look(buffer, count, data, at - begin)
                    at += count
                if data is not None:
                    self._let_go(len(data))
        except OSError as error:
            raise ResourceError(f"reading again failed: {error.strerror}", path=self._path) from error
        finally:
            os.close(descriptor)
            with self._room:
                self._ended = True
                self._room.notify_all()

    def _look(self, buffer: bytearray, count: int, data: bytes | None, at: int) -> None:
        """Hash and compare the first `count` bytes of the buffer, which are those of `data` from `at` on."""
        found = buffer if count == len(buffer) else buffer[:count]
        if self._hash is not None:
            self._hash.update(found)
        # A bytearray compares with another buffer by memcmp; two views would go element by element.
        if data is not None and found != memoryview(data)[at : at + count]:
            raise InternalError("the bytes of the output are not those written", path=self._path)

    def _let_go(self, count: int) -> None:
        with self._room:
            self._kept -= count
            self._room.notify_all()
