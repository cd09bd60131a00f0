"""A batch: one verb over a manifest, resumed where it was stopped, in which no item can spoil another."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loratools.batch.items import Item, items
from loratools.batch.manifest import home_of, rows
from loratools.batch.pool import Pool
from loratools.batch.ray_pool import RayPool
from loratools.batch.results import check_results, write_results
from loratools.batch.state import BEGUN, DONE, FAILED, TODO, State
from loratools.batch.verbs import batch_verb
from loratools.batch.worker import NO_LIMITS, Limits
from loratools.errors import InternalError, UsageError

RUNNER = "loratools.cli.items:run"
"""What runs the words of an item, in a worker."""
ATTEMPTS = 3
Manifest = str | os.PathLike[str] | Iterable[str | Mapping[str, Any]]
Engine = Literal["processes", "ray"]
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended: of `items` in all, so many `done` and `failed`, so many of them `worked` on in this run."""

    verb: str
    state: Path
    results: Path | None
    items: int
    done: int
    failed: int
    worked: int
    seconds: float
    codes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.batch/1",
            "verb": self.verb,
            "state": str(self.state),
            "results": None if self.results is None else str(self.results),
            "items": self.items,
            "done": self.done,
            "failed": self.failed,
            "worked": self.worked,
            "seconds": round(self.seconds, 3),
            "codes": dict(self.codes),
        }


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One verb over a manifest: the command line `loratools VERB` with each row's inputs, output and `options`.

    `options` are words of the verb ("--to", "diffusers"). `output` is a pattern ("out/{stem}.safetensors"), `constants`
    fill columns that rows lack (base="sd15.safetensors" for merge). `state` is the SQLite file that makes it resumable;
    two batches never share one. `shard` (i, n) takes every n-th item. Items that failed for want of resources, by the
    network, or with their worker are tried up to three times; `retry` tries all that failed once more.

    The `engine` is processes of this machine, or "ray": a cluster at `ray_address`, or one started here. Manifest and
    state are the same under both.
    """

    verb: str
    manifest: Manifest
    state: str | os.PathLike[str]
    options: Sequence[str] = ()
    output: str | None = None
    constants: Mapping[str, str] | None = None
    results: str | os.PathLike[str] | None = None
    workers: int = 0
    limits: Limits = NO_LIMITS
    shard: tuple[int, int] = (1, 1)
    retry: bool = False
    engine: Engine = "processes"
    ray_address: str | None = None
    progress: Progress | None = None

    def run(self) -> Summary:
        """Do what is left to do, and write the results; raises UsageError and what the manifest raises, never an item's
        error.
        """
        from loratools import __version__

        started = time.monotonic()
        verb = batch_verb(self.verb)
        index, count = self.shard
        if not 1 <= index <= count:
            raise UsageError(f"there is no shard {index} of {count}", hint="--shard 1/4 is the first of four")
        results = None if self.results is None else Path(self.results)
        if results is not None:
            check_results(results)
        found = items(
            verb,
            rows(self.manifest, verb.listed),
            options=self.options,
            output=self.output,
            constants=self.constants,
            home=home_of(self.manifest),
        )
        parameters = json.dumps([list(self.options), self.output, dict(self.constants or {}), list(self.shard)])
        with State(Path(self.state)) as state:
            state.begin(verb.name, parameters, __version__)
            state.add(found)
            state.reopen(attempts=ATTEMPTS, again=self.retry)
            worked = self._work(state)
            state.flush()
            counts = state.counts(self.shard)
            if counts.get(TODO) or counts.get(BEGUN):
                raise InternalError(f"items were left undone: {counts}", path=state.path)
            if results is not None:
                write_results(results, state.results())
            codes = state.codes()
        return Summary(
            verb.name, Path(self.state), results, sum(counts.values()), counts.get(DONE, 0), counts.get(FAILED, 0),
            worked, time.monotonic() - started, codes,
        )  # fmt: skip

    def _work(self, state: State) -> int:
        counts = state.counts(self.shard)
        left = counts.get(TODO, 0) + counts.get(BEGUN, 0)
        total, failed, worked = sum(counts.values()), counts.get(FAILED, 0), 0
        if not left:
            return 0
        for folder in {Path(item.output).parent for item in state.todo(self.shard) if item.output}:
            folder.mkdir(parents=True, exist_ok=True)
        tries: dict[int, int] = {}
        with self._pool(left, state) as pool:
            again: list[Item] = []
            pending = state.todo(self.shard)
            while True:
                for event in pool.run(pending):
                    number = event.item.number
                    tries[number] = tries.get(number, 0) + 1
                    if event.kind == "died" and tries[number] < ATTEMPTS:
                        again.append(state.again(event.item))
                        continue
                    bad = event.answer.exit_code not in _ANSWERS
                    state.record(number, event.answer, state=FAILED if bad else DONE, attempts=tries.pop(number))
                    worked, failed = worked + 1, failed + bad
                    if self.progress is not None:
                        self.progress(total - left + worked, total, failed)
                if not again:
                    return worked
                pending, again = iter(again), []

    def _pool(self, left: int, state: State) -> Pool | RayPool:
        if self.engine == "processes":
            return Pool(min(self.workers or os.cpu_count() or 1, left), RUNNER, self.limits, state.begin_items)
        return RayPool(self.workers, RUNNER, self.limits, state.begin_items, state.again, address=self.ray_address)


_ANSWERS = (0, 1)
"""The exit codes of an item that was answered, be the answer no."""
