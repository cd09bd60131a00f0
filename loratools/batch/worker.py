"""A worker: a process of its own that runs one item after another and tells the driver of each."""

from __future__ import annotations

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

from loratools.batch.answer import Answer, sha256_of_output, standing
from loratools.batch.copies import copied
from loratools.batch.identity import identity
from loratools.batch.items import Item
from loratools.errors import ResourceError
from loratools.hub.references import is_remote

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
    if item.identify:
        return Answer(0, identity(item.words).to_dict(), time.monotonic() - started)
    copy = copied(item)
    if copy is not None:
        return copy._replace(seconds=time.monotonic() - started)
    code, document = run([*item.words, "--overwrite"] if item.begun else item.words)
    if code or item.output is None:
        return Answer(code, document, time.monotonic() - started)
    place = Path(item.output)
    stands = standing(place)
    return Answer(code, document, time.monotonic() - started, *stands, sha256_of_output(place))


def _size(source: str) -> int | None:
    if is_remote(source):
        return None
    try:
        return os.stat(source).st_size  # noqa: PTH116 (a word that may be no path at all)
    except OSError:
        return None  # the verb says what is wrong with it
