"""Worker processes that may die: a chunk each, an answer an item; what a dead one left is given to another."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Self

from loratools.batch.answer import Answer
from loratools.batch.items import Item
from loratools.batch.leftovers import sweep
from loratools.batch.worker import Limits, work
from loratools.errors import InternalError, ResourceError

CHUNK_SECONDS, LARGEST_CHUNK = 0.5, 256
RECYCLED = 4096
"""Items after which a worker makes place for a fresh one."""
HOPELESS = 20
"""Workers that die one after the other, without an answer between them, before the run is given up."""
_POLL, _GRACE = 0.25, 5.0


class Event(NamedTuple):
    """An item that was "answered", or that its worker did not survive ("died"), or that took too long ("timeout")."""

    item: Item
    kind: str
    answer: Answer


class _Worker:
    """One process, what it has in hand, and since when."""

    def __init__(self, runner: str, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, runner, limits), daemon=True)
        self.process.start()
        theirs.close()
        self.hand: deque[Item] = deque()
        self.since = time.monotonic()
        self.answered = 0
        self.ready = self.ended = False

    def give(self, chunk: list[Item]) -> None:
        self.hand.extend(chunk)
        self.since = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its end of the pipe tells
            self.pipe.send(chunk)

    def end(self) -> None:
        """End it: what it has begun is undone by itself, as after any SIGTERM, or it is killed."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Pool:
    """`workers` processes; leave the block to end them. `begin` is told of the items that a worker is about to get."""

    def __init__(self, workers: int, runner: str, limits: Limits, begin: Callable[[Iterable[Item]], None]) -> None:
        self.runner, self.limits, self.count, self.begin = runner, limits, workers, begin
        self._workers: list[_Worker] = []
        self._pace = CHUNK_SECONDS  # seconds an item, so far
        self._barren = 0  # deaths since the last answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def run(self, todo: Iterable[Item]) -> Iterator[Event]:
        """Every item's event, as they come; what a dead worker had not begun yet is done by another.

        Raises ResourceError where workers do nothing but die.
        """
        source, again = iter(todo), deque[Item]()
        self._pace = CHUNK_SECONDS  # what came before was other work
        while True:
            self._employ(source, again)
            if not self._workers:
                return
            yield from self._events(again)

    def _employ(self, source: Iterator[Item], again: deque[Item]) -> None:
        """Give every idle worker a chunk, start those that are missing, let go of those that nothing is left for."""
        for worker in [worker for worker in self._workers if not worker.hand]:
            chunk = self._chunk(source, again) if worker.answered < RECYCLED else []
            if chunk:
                worker.give(chunk)
            else:
                self._workers.remove(worker)
                worker.end()
        while len(self._workers) < self.count and (chunk := self._chunk(source, again)):
            worker = _Worker(self.runner, self.limits)
            worker.give(chunk)
            self._workers.append(worker)

    def _chunk(self, source: Iterator[Item], again: deque[Item]) -> list[Item]:
        most = max(1, min(LARGEST_CHUNK, int(CHUNK_SECONDS / max(self._pace, 1e-6))))
        found: list[Item] = []
        while len(found) < most:
            item = again.popleft() if again else next(source, None)
            if item is None:
                break
            found.append(item)
        self.begin(found)
        return found

    def _events(self, again: deque[Item]) -> Iterator[Event]:
        ready = wait([worker.pipe for worker in self._workers], _POLL)
        for worker in list(self._workers):
            if worker.pipe in ready:
                yield from self._answers(worker)
            if worker.hand and worker.ended:
                event = self._lost(worker, "died", again)
                if worker.ready:
                    yield event
                else:  # it had not begun with anything
                    again.appendleft(event.item)
            elif worker.hand and self._too_long(worker):
                yield self._lost(worker, "timeout", again)

    def _answers(self, worker: _Worker) -> Iterator[Event]:
        """What is there to be read; a pipe that ends has a dead worker at its other end."""
        while worker.hand and worker.pipe.poll():
            try:
                told = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.ended = True
                return
            worker.since = time.monotonic()
            if told is None:
                worker.ready = True
                continue
            item, (number, answer) = worker.hand.popleft(), told
            if number != item.number:
                raise InternalError(f"a worker answered for item {number} instead of {item.number}")
            worker.answered += 1
            self._barren = 0
            self._pace += 0.1 * (answer.seconds - self._pace)
            yield Event(item, "answered", answer)

    def _too_long(self, worker: _Worker) -> bool:
        allowed = self.limits.seconds
        return allowed is not None and worker.ready and time.monotonic() - worker.since > allowed

    def _lost(self, worker: _Worker, kind: str, again: deque[Item]) -> Event:
        """The item in hand is the one to be told of; those behind it had not begun."""
        took = time.monotonic() - worker.since
        worker.process.kill()
        worker.process.join()
        self._workers.remove(worker)
        worker.pipe.close()
        self._barren += kind == "died"
        if self._barren >= HOPELESS:
            hint = "fewer --workers, or more memory for each"
            raise ResourceError(f"{HOPELESS} workers died, one after the other", hint=hint)
        item = worker.hand.popleft()
        again.extendleft(reversed(worker.hand))
        sweep([item.output])
        document = died(item, kind, worker.process.exitcode, took)
        return Event(item, kind, Answer(ResourceError.exit_code, document, took))


def died(item: Item, kind: str, code: int | None, seconds: float) -> dict[str, Any]:
    """The error document of an item whose worker died or took too long; `code` is how the process ended, if known."""
    if kind == "timeout":
        error = ResourceError(f"it took longer than allowed ({seconds:.1f} s)", path=item.source)
        return {**error.to_dict(), "code": "timeout"}
    how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
    message = f"the process that worked on it died{how}"
    error = ResourceError(message, path=item.source, hint="is there memory for it?")
    return {**error.to_dict(), "code": "worker-died"}
