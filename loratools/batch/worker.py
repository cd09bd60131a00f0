"""A worker: a process of its own that runs one item after another and tells the driver of each."""

from __future__ import annotations

import hashlib
import importlib
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from loratools.batch.items import Item
from loratools.batch.state import Answer, standing
from loratools.errors import ResourceError
from loratools.hub.references import is_remote
from loratools.tensors.checksums import sha256_of

Runner = Callable[[Sequence[str]], tuple[int, dict[str, Any]]]


class Limits(NamedTuple):
    """What one item may take: seconds (watched by the driver), bytes of memory, bytes of its first input."""

    seconds: float | None = None
    memory: int | None = None
    size: int | None = None


NO_LIMITS = Limits()


def work(pipe: Connection, runner: str, limits: Limits) -> None:
    """Answer every item of every chunk that comes through the pipe, until it closes.

    `runner` is `module:function`, which takes the words of a command and gives its exit code and document.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    run = loaded(runner)
    if limits.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the driver has gone, and so do we
        pipe.send(None)  # ready: what came before was no item's time
        while True:
            for item in pipe.recv():
                pipe.send((item.number, answer(item, run, limits)))


def loaded(runner: str) -> Runner:
    """The function that `module:function` names."""
    module, _, name = runner.partition(":")
    found: Runner = getattr(importlib.import_module(module), name)
    return found


def answer(item: Item, run: Runner, limits: Limits) -> Answer:
    """Run one item."""
    started = time.monotonic()
    size = _size(item.source) if limits.size is not None else None
    if size is not None and limits.size is not None and size > limits.size:
        error = ResourceError(f"{size} bytes are more than the limit of {limits.size}", path=item.source)
        return Answer(error.exit_code, {**error.to_dict(), "code": "too-large"}, 0.0)
    code, document = run([*item.words, "--overwrite"] if item.begun else item.words)
    if code or item.output is None:
        return Answer(code, document, time.monotonic() - started)
    place = Path(item.output)
    stands = standing(place)
    return Answer(code, document, time.monotonic() - started, *stands, _sha256(place))


def _sha256(place: Path) -> str:
    """The SHA-256 of a file; of the names and SHA-256 of a folder's files, in order, for a folder."""
    if not place.is_dir():
        return sha256_of(place)
    digest = hashlib.sha256()
    for item in sorted(place.rglob("*")):
        if item.is_file():
            digest.update(f"{item.relative_to(place).as_posix()}\0{sha256_of(item)}\n".encode())
    return digest.hexdigest()


def _size(source: str) -> int | None:
    if is_remote(source):
        return None
    try:
        return os.stat(source).st_size  # noqa: PTH116 (a word that may be no path at all)
    except OSError:
        return None  # the verb says what is wrong with it
