"""A batch: one verb over a manifest, resumed where it was stopped, in which no item can spoil another."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loratools.batch.answer import Answer
from loratools.batch.identities import ALL, COPIES, FIRSTS
from loratools.batch.items import Item, items
from loratools.batch.leftovers import sweep_all
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
COPYING = ("convert", "merge", "resize")
"""The verbs whose outputs are made of adapters."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended: of `items` in all, so many `done` and `failed`, so many of them `worked` on in this run.

    `copied` are the outputs, of all runs, that are copies of another's.
    """

    verb: str
    state: Path
    results: Path | None
    items: int
    done: int
    failed: int
    worked: int
    seconds: float
    codes: Mapping[str, int]
    copied: int = 0

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
            "copied": self.copied,
        }


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One verb over a manifest: the command line `loratools VERB` with each row's inputs, output and `options`.

    `options` are words of the verb ("--to", "diffusers"). `output` is a pattern ("out/{stem}.safetensors"), `constants`
    fill columns that rows lack (base="sd15.safetensors" for merge). `state` is the SQLite file that makes it resumable;
    two batches never share one. `shard` (i, n) takes every n-th item. Items that failed for want of resources, by the
    network, or with their worker are tried up to three times; `retry` tries all that failed once more.

    With `deduplicate` adapters are hashed first. Of items with equal files, options and base one is done; the outputs
    of the others are that file under another name, or the same tensors under a record with their own inputs' names: in
    either case the bytes that the command alone would have written. `same_as` in a row is the number of the first item
    with its fingerprint, in whatever spelling; `copied` tells whether its output is a copy. `identified` is called with
    how many are hashed, of how many.

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
    deduplicate: bool = False
    identified: Callable[[int, int], None] | None = None

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
        if self.deduplicate and verb.name not in COPYING:
            raise UsageError(
                f"{verb.name} makes nothing of an adapter that could be copied",
                hint=f"--deduplicate is for {', '.join(COPYING)}; the rows of hash tell the fingerprints",
            )
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
            codes, copies = state.codes(), state.identities.copied()
        return Summary(
            verb.name, Path(self.state), results, sum(counts.values()), counts.get(DONE, 0), counts.get(FAILED, 0),
            worked, time.monotonic() - started, codes, copies,
        )  # fmt: skip

    def _work(self, state: State) -> int:
        counts = state.counts(self.shard)
        left = counts.get(TODO, 0) + counts.get(BEGUN, 0)
        total, failed, worked = sum(counts.values()), counts.get(FAILED, 0), 0
        if not left:
            return 0
        for folder in {Path(item.output).parent for item in state.todo(self.shard) if item.output}:
            folder.mkdir(parents=True, exist_ok=True)
        with self._pool(left, state) as pool:
            if self.deduplicate:
                self._identify(pool, state)
            for which in (FIRSTS, COPIES) if self.deduplicate else (ALL,):
                todo = state.todo(self.shard, which=which)
                todo = map(state.identities.with_twin, todo) if which == COPIES else todo
                for item, answer, tries in _answers(pool, state, todo):
                    bad = answer.exit_code not in _ANSWERS
                    state.record(item.number, answer, state=FAILED if bad else DONE, attempts=tries)
                    worked, failed = worked + 1, failed + bad
                    if self.progress is not None:
                        self.progress(total - left + worked, total, failed)
                state.flush()
        sweep_all(lambda: state.outputs(self.shard))
        return worked

    def _identify(self, pool: Pool | RayPool, state: State) -> None:
        """Learn what the adapters of all items to do are, as far as that is not known from before."""
        total = sum(1 for _ in state.identities.lacking(state.todo(self.shard)))
        lacking = state.identities.lacking(state.todo(self.shard))
        found: list[tuple[int, Mapping[str, Any]]] = []
        for count, (item, answer, _) in enumerate(_answers(pool, state, lacking), 1):
            found.append((item.number, answer.document))
            if len(found) == _IDENTIFIED or count == total:
                state.identities.record(found)
                found.clear()
            if self.identified is not None:
                self.identified(count, total)

    def _pool(self, left: int, state: State) -> Pool | RayPool:
        if self.engine == "processes":
            return Pool(min(self.workers or os.cpu_count() or 1, left), RUNNER, self.limits, state.begin_items)
        return RayPool(self.workers, RUNNER, self.limits, state.begin_items, state.again, address=self.ray_address)


def _answers(pool: Pool | RayPool, state: State, todo: Iterable[Item]) -> Iterator[tuple[Item, Answer, int]]:
    """How every item ended, and at the how-manieth try; those whose process died are tried up to three times."""
    tries: dict[int, int] = {}
    again: list[Item] = []
    while True:
        for event in pool.run(todo):
            number = event.item.number
            tries[number] = tries.get(number, 0) + 1
            if event.kind == "died" and tries[number] < ATTEMPTS:
                again.append(state.again(event.item))
            else:
                yield event.item, event.answer, tries.pop(number)
        if not again:
            return
        todo, again = again, []


_IDENTIFIED = 256
_ANSWERS = (0, 1)
"""The exit codes of an item that was answered, be the answer no."""
