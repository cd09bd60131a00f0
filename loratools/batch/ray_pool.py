"""Workers as actors of a Ray cluster: a chunk a call; a chunk whose actor died is given out again item by item.

An actor imports what its items need once and keeps it. Needs Ray 2.59 or newer, the first whose clusters ask for a
token; nothing but the command line of an item and its answer travels, so every machine must see the files by the same
paths.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Self

from loratools.batch.answer import Answer
from loratools.batch.items import Item
from loratools.batch.leftovers import sweep
from loratools.batch.pool import CHUNK_SECONDS, HOPELESS, LARGEST_CHUNK, Event, died
from loratools.batch.worker import Limits, answer, loaded
from loratools.errors import ResourceError, Unavailable, UnsupportedFile

OLDEST = (2, 59)
_POLL = 0.25
_LEAST_CHUNK = 8
"""Calls cost milliseconds, so that quick items travel together."""


class _Worker:
    """What runs in an actor."""

    def __init__(self, runner: str, limits: Limits) -> None:
        self._run, self._limits = loaded(runner), limits

    def ready(self) -> None:
        """Returns when everything is imported: what came before was no item's time."""

    def answer(self, chunk: Sequence[Item]) -> list[Answer]:
        return [answer(item, self._run, self._limits) for item in chunk]


class _Call(NamedTuple):
    """A chunk in an actor's hands, since when, and how long it may take."""

    actor: Any
    chunk: list[Item]
    since: float
    allowed: float | None


class RayPool:
    """`workers` actors (as many as the cluster has CPUs, where 0); leave the block to end them.

    `address` is a cluster's; None starts one on this machine. Raises UnsupportedFile without Ray, Unavailable where the
    cluster cannot be reached.
    """

    def __init__(
        self,
        workers: int,
        runner: str,
        limits: Limits,
        begin: Callable[[Iterable[Item]], None],
        again: Callable[[Item], Item],
        *,
        address: str | None = None,
    ) -> None:
        self.runner, self.limits, self.begin, self.again, self.address = runner, limits, begin, again, address
        self.count = workers
        self._ray = _ray()
        self._calls: dict[Any, _Call] = {}
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._pace, self._barren = CHUNK_SECONDS, 0
        self._lost_outputs: list[str | None] = []

    def __enter__(self) -> Self:
        ray = self._ray
        try:
            ray.init(
                address=self.address,
                num_cpus=None if self.address else self.count or None,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unavailable(f"no Ray cluster: {error}", hint="ray start --head, and --ray-address") from error
        self.count = self.count or int(ray.cluster_resources().get("CPU", 1))
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._idle, *self._starting.values(), *(call.actor for call in self._calls.values())]:
            self._ray.kill(actor)
        self._ray.shutdown()
        sweep(self._lost_outputs)

    def run(self, todo: Iterable[Item]) -> Iterator[Event]:
        """Every item's event, as `Pool.run` gives them."""
        source, singly = iter(todo), deque[Item]()
        self._pace = CHUNK_SECONDS  # what came before was other work
        while True:
            self._employ(source, singly)
            if not self._calls and not (singly and self._starting):
                return
            ready, _ = self._ray.wait([*self._calls, *self._starting], num_returns=1, timeout=_POLL)
            for reference in ready:
                if reference in self._starting:
                    self._started(reference)
                else:
                    yield from self._answers(reference, singly)
            for reference, call in list(self._calls.items()):
                if call.allowed is not None and time.monotonic() - call.since > call.allowed:
                    yield from self._lost(self._calls.pop(reference), "timeout", singly)

    def _employ(self, source: Iterator[Item], singly: deque[Item]) -> None:
        """Keep as many actors as there may be, and give every idle one a chunk."""
        self._recruit()
        while not (self._idle or self._calls):
            self._started(self._ray.wait(list(self._starting), num_returns=1)[0][0])
            self._recruit()
        while self._idle and (chunk := self._chunk(source, singly)):
            actor, seconds = self._idle.pop(), self.limits.seconds
            allowed = None if seconds is None else seconds * len(chunk)
            self._calls[actor.answer.remote(chunk)] = _Call(actor, chunk, time.monotonic(), allowed)

    def _recruit(self) -> None:
        while len(self._calls) + len(self._idle) + len(self._starting) < self.count:
            actor = self._ray.remote(num_cpus=1, max_restarts=0)(_Worker).remote(self.runner, self.limits)
            self._starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            self._mourn()
        else:
            self._idle.append(actor)

    def _mourn(self) -> None:
        self._barren += 1
        if self._barren >= HOPELESS:
            raise ResourceError(f"{HOPELESS} actors died, one after the other", hint="fewer --workers")

    def _chunk(self, source: Iterator[Item], singly: deque[Item]) -> list[Item]:
        if singly:
            return [singly.popleft()]
        most = max(1, min(LARGEST_CHUNK, int(CHUNK_SECONDS / max(self._pace, 1e-6))))
        most = max(most, _LEAST_CHUNK) if most > 1 else most
        found = list(islice(source, most))
        self.begin(found)
        return found

    def _answers(self, reference: Any, singly: deque[Item]) -> Iterator[Event]:
        call = self._calls.pop(reference)
        try:
            answers: list[Answer] = self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            yield from self._lost(call, "died", singly)
            return
        self._barren = 0
        self._idle.append(call.actor)
        for item, found in zip(call.chunk, answers, strict=True):
            self._pace += 0.1 * (found.seconds - self._pace)
            yield Event(item, "answered", found)

    def _lost(self, call: _Call, kind: str, singly: deque[Item]) -> Iterator[Event]:
        """One item alone is the one to be told of; of several nobody knows which, nor what is done: each goes alone."""
        took = time.monotonic() - call.since
        self._ray.kill(call.actor)
        self._lost_outputs += [item.output for item in call.chunk]
        if kind == "died":
            self._mourn()
        if len(call.chunk) > 1:
            singly.extend(map(self.again, call.chunk))
            return
        item = call.chunk[0]
        yield Event(item, kind, Answer(ResourceError.exit_code, died(item, kind, None, took), took))


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise UnsupportedFile("this engine needs Ray", hint="pip install 'loratools[ray]'") from error
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        raise UnsupportedFile(f"Ray {ray.__version__} is too old", hint="pip install 'ray>=2.59'")
    return ray
