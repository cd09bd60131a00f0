"""One warm process for all the pickles that this process reads, and what it answers."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

from loratools.tensors.pickle_zygote import ENDED, WISH

_RUN = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from loratools.tensors.pickle_zygote import main
main()
"""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath}
"""One thread: a process of several cannot be forked without surprises."""


class Ended(NamedTuple):
    """How the reading of one file ended: an exit status, minus the signal where one did it, and what was printed."""

    status: int
    printed: str


class Zygote:
    """A process that has torch and nothing open, and forks one confined child for each file."""

    def __init__(self) -> None:
        """Starts it; it is not waited for until it is asked for something."""
        ours, theirs = socket.socketpair()
        self._socket = ours
        # Its complaints end in a file without a name, because nobody reads a pipe meanwhile.
        self._complaints = tempfile.TemporaryFile(prefix="loratools-")  # noqa: SIM115 - closed by close()
        paths = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109 - sys.path holds strings
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
                [sys.executable, "-I", "-c", _RUN, paths, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                pass_fds=(theirs.fileno(),),
                env=_ENVIRONMENT,
            )

    def read(self, source: int, target: int, size: int) -> Ended:
        """Let a child read the pickle of `size` bytes in one descriptor, and write its tensors into the other."""
        try:
            socket.send_fds(self._socket, [WISH.pack(size)], [source, target])
            status, length = ENDED.unpack(self._received(ENDED.size))
            return Ended(status, self._received(length).decode("utf-8", "replace"))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            status = self.process.wait()
            self._complaints.seek(0)
            return Ended(status or 1, self._complaints.read().decode("utf-8", "replace"))

    def _received(self, length: int) -> bytes:
        """So many bytes of its answer; raises EOFError where it has ended."""
        pieces = bytearray()
        while len(pieces) < length:
            piece = self._socket.recv(min(length - len(pieces), 1 << 20))
            if not piece:
                raise EOFError
            pieces += piece
        return bytes(pieces)

    def close(self) -> None:
        """Ends it, and a child that may be at work, and leaves no zombie."""
        self.forget()
        self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """Lets go of what a fork has inherited: as long as it is held, the process would outlive whose it is."""
        self._socket.close()
        self._complaints.close()


class Unpickler:
    """The process's one zygote: started when a pickle is to be read, and again where it has died."""

    def __init__(self) -> None:
        """Nothing is started before it is needed."""
        self._lock = threading.Lock()
        self._zygote: Zygote | None = None

    def read(self, source: int, target: int, size: int) -> Ended:
        """Let a confined process read a pickle: see Zygote.read; one file at a time, whichever thread asks."""
        with self._lock:
            if self._zygote is not None and self._zygote.process.poll() is not None:
                self._end()
            if self._zygote is None:
                self._zygote = Zygote()
            try:
                return self._zygote.read(source, target, size)
            except BaseException:
                # Such as Ctrl-C: its answer is still to come, and must not be taken for that to another question.
                self._end()
                raise

    def close(self) -> None:
        """Ends the zygote, if there is one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def after_fork(self) -> None:
        """In a forked process: what is inherited is the other's, and the lock may be held by a thread of it."""
        self._lock = threading.Lock()
        if self._zygote is not None:
            self._zygote.forget()
            self._zygote.process.returncode = 0  # or it would be missed, as a child that was not waited for
            self._zygote = None


UNPICKLER = Unpickler()
atexit.register(UNPICKLER.close)
os.register_at_fork(after_in_child=UNPICKLER.after_fork)
