"""The process that unpickles for another: torch is imported once, and every file gets a forked, confined child.

It takes two descriptors and a size at a time over a socket, and says there how the child ended and what it printed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from typing import NoReturn

from loratools.tensors import pickle_child

WISH = struct.Struct("<Q")
"""The size of the input in bytes; the input's and the output's descriptors come with it."""
ENDED = struct.Struct("<iQ")
"""The child's exit status, minus the signal that ended it, and the length of what it printed, which follows."""

_DESCRIPTORS = 64
"""As many as this process and its children may ever have."""
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Runs with one argument, the descriptor of its socket, until the other end of that is closed."""
    # Ctrl-C is the other process's matter: it closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = int(sys.argv[1])
    # The lowest number there is: what lies past the limit below could not be closed one by one.
    with socket.socket(fileno=os.dup(given)) as wishes:
        os.close(given)
        pickle_child.warm()
        libc = ctypes.CDLL(None)
        os.chdir("/")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
        gc.freeze()
        try:
            while _serve(wishes, libc):
                pass
        except (BrokenPipeError, ConnectionResetError):
            return  # Nobody is there to be told.


def _serve(wishes: socket.socket, libc: ctypes.CDLL) -> bool:
    """Whether one more file was asked for, read, and told of."""
    wish, descriptors, _, _ = socket.recv_fds(wishes, WISH.size, 2)
    if not wish:
        return False
    source, target = descriptors
    printed, into = os.pipe()
    zygote = os.getpid()
    child = os.fork()
    if not child:
        # Prctl before the check: whoever dies before it is no longer the parent, whoever dies after it takes us along.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != zygote:
            os._exit(1)
        _run(source, target, into, *WISH.unpack(wish))
    for descriptor in (source, target, into):
        os.close(descriptor)
    said = _all(printed, wishes)
    if said is None:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said is None:
        return False
    wishes.sendall(ENDED.pack(status, len(said)) + said)
    return True


def _all(printed: int, wishes: socket.socket) -> bytes | None:
    """All that a child prints before it ends, or None where the other end of `wishes` is closed first."""
    said = bytearray()
    waiting = select.poll()
    waiting.register(printed, select.POLLIN)
    waiting.register(wishes, select.POLLIN)
    with os.fdopen(printed, "rb", buffering=0) as pipe:
        while True:
            if wishes.fileno() in {descriptor for descriptor, _ in waiting.poll()}:
                return None
            piece = pipe.read(1 << 16)
            if not piece:
                return bytes(said)
            said += piece


def _run(source: int, target: int, into: int, size: int) -> NoReturn:
    """Runs in the child: its two files, and both ways of printing into one pipe, are all that it keeps."""
    code = 1
    try:
        os.dup2(into, 1)
        os.dup2(into, 2)
        for descriptor in range(3, _DESCRIPTORS):
            if descriptor not in (source, target):
                _close(descriptor)
        sys.stdout.write(f"\n{pickle_child.answer(source, target, size)}")
        code = 0
    except BaseException as error:  # noqa: BLE001 - what ends this process is told, and its exit status says so
        sys.stderr.write("\n" + traceback.format_exception_only(error)[-1])
    finally:
        # Not sys.exit: what is to be done at the end of a process is the zygote's to do.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _close(descriptor: int) -> None:
    os.closerange(descriptor, descriptor + 1)  # which takes no offence at what is not open
