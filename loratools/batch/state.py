"""The state of a batch in SQLite: one row an item, written by the driver alone, whole after any kill."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from loratools.batch.answer import Answer, standing
from loratools.batch.identities import ALL, IDENTITY, TOLD, Identities
from loratools.batch.items import Item
from loratools.errors import MalformedFile, ResourceError, UsageError

TODO, BEGUN, DONE, FAILED = "todo", "begun", "done", "failed"
_COMMIT_ITEMS, _COMMIT_SECONDS = 256, 1.0
_PAGE = 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (verb TEXT NOT NULL, parameters TEXT NOT NULL, version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS item (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, source TEXT NOT NULL, words TEXT NOT NULL, output TEXT,
    state TEXT NOT NULL DEFAULT 'todo', attempts INTEGER NOT NULL DEFAULT 0, exit_code INTEGER, code TEXT, message TEXT,
    seconds REAL, output_size INTEGER, output_time INTEGER, output_sha256 TEXT, document BLOB
);
CREATE INDEX IF NOT EXISTS item_state ON item (state, number);
"""


class State:
    """An open state file; two drivers never share one. Raises ResourceError where another has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ResourceError(error.strerror or str(error), path=path) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ResourceError("another run is using this state", path=path, hint="wait for it, or --state") from error
        try:
            self._base = sqlite3.connect(path, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(_SCHEMA)
            self.identities = Identities(self._base)
        except sqlite3.DatabaseError as error:
            os.close(self._lock)
            raise MalformedFile(f"this is no state of a batch: {error}", path=path) from error
        self._waiting: list[tuple[Any, ...]] = []
        self._copied: list[tuple[bool, int]] = []
        self._committed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._base.close()
        os.close(self._lock)

    def begin(self, verb: str, parameters: str, version: str) -> None:
        """Say what the batch does; UsageError where the file is another batch's."""
        held = self._base.execute("SELECT verb, parameters, version FROM job").fetchone()
        if held is None:
            self._base.execute("INSERT INTO job VALUES (?, ?, ?)", (verb, parameters, version))
        elif held != (verb, parameters, version):
            raise UsageError(
                f"the state is of another batch ({held[0]}, loratools {held[2]})",
                path=self.path,
                hint="give this one a --state of its own, or remove that file",
            )

    def add(self, found: Iterable[Item]) -> None:
        """Items that are not there yet are to be done."""
        self._base.execute("BEGIN")
        try:
            self._base.executemany(
                "INSERT INTO item (number, key, source, words, output) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO NOTHING",
                (
                    (item.number, item.key, json.dumps(item.source), json.dumps(item.words), _text(item.output))
                    for item in found
                ),
            )
        except sqlite3.IntegrityError as error:
            self._base.execute("ROLLBACK")
            raise UsageError(
                "the manifest is not the one that this state began with: rows may only be added at its end",
                path=self.path,
                hint="give this one a --state of its own",
            ) from error
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    def reopen(self, *, attempts: int, again: bool) -> None:
        """What is to be done once more: outputs that are gone or others, and failures that may pass.

        Those are want of resources and of the network, and workers that died, up to `attempts`; with `again` all.
        """
        changed = [
            (number,)
            for number, output, size, stamp in self._base.execute(
                "SELECT number, output, output_size, output_time FROM item WHERE state = 'done' AND output IS NOT NULL"
            )
            if standing(Path(json.loads(output))) != (size, stamp)
        ]
        self._base.executemany("UPDATE item SET state = 'todo', attempts = 0 WHERE number = ?", changed)
        passing = "exit_code IN (5, 6) AND attempts < ?" if not again else "? = ?"
        given = (attempts,) if not again else (1, 1)
        self._base.execute(f"UPDATE item SET state = 'todo' WHERE state = 'failed' AND {passing}", given)  # noqa: S608 (this file's own words)

    def todo(self, shard: tuple[int, int] = (1, 1), *, which: str = ALL) -> Iterator[Item]:
        """Items to do, in order, a page at a time; `shard` (i, n) takes every n-th.

        `which` of them: ALL, FIRSTS alone, or COPIES, whose identity an item before them has, too.
        """
        last = -1
        while True:
            page = self._base.execute(
                "SELECT number, key, words, output, source, state = 'begun' FROM item "  # noqa: S608 (this file's own words)
                f"WHERE state IN ('todo', 'begun') AND number > ? AND number % ? = ? AND {which} "
                "ORDER BY number LIMIT ?",
                (last, shard[1], shard[0] - 1, _PAGE),
            ).fetchall()
            if not page:
                return
            for number, key, words, output, source, begun in page:
                place = None if output is None else json.loads(output)
                yield Item(number, key, tuple(json.loads(words)), place, json.loads(source), bool(begun))
            last = page[-1][0]

    def outputs(self, shard: tuple[int, int] = (1, 1)) -> Iterator[str]:
        """The outputs of all items, done or not."""
        asked = "SELECT output FROM item WHERE output IS NOT NULL AND number % ? = ?"
        for (output,) in self._base.execute(asked, (shard[1], shard[0] - 1)):
            yield json.loads(output)

    def begin_items(self, chunk: Iterable[Item]) -> None:
        """Items that are about to write where nothing stands; on the disk before they do."""
        numbers = [
            (item.number,) for item in chunk if item.output and not item.begun and not os.path.lexists(item.output)
        ]
        if numbers:
            self.flush()
            self._base.execute("BEGIN")
            self._base.executemany("UPDATE item SET state = 'begun' WHERE number = ?", numbers)
            self._base.execute("COMMIT")

    def again(self, item: Item) -> Item:
        """An item as it is done once more: if it was begun when nothing stood where its output goes, over that."""
        asked = "SELECT state = 'begun' FROM item WHERE number = ?"
        return item._replace(begun=bool(self._base.execute(asked, (item.number,)).fetchone()[0]))

    def record(self, number: int, answer: Answer, *, state: str, attempts: int) -> None:
        """Keep an answer; it is on the disk within a second, or 256 answers."""
        document = answer.document
        failed = state == FAILED
        self._waiting.append((
            state, attempts, answer.exit_code, document.get("code") if failed else None,
            document.get("message") if failed else None, answer.seconds, answer.output_size, answer.output_time,
            answer.output_sha256, zlib.compress(json.dumps(document).encode(), 1), number,
        ))  # fmt: skip
        self._copied.append((answer.copied, number))
        if len(self._waiting) >= _COMMIT_ITEMS or time.monotonic() - self._committed > _COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put every answer on the disk."""
        if self._waiting:
            self._base.execute("BEGIN")
            self._base.executemany(
                "UPDATE item SET state = ?, attempts = ?, exit_code = ?, code = ?, message = ?, seconds = ?, "
                "output_size = ?, output_time = ?, output_sha256 = ?, document = ? WHERE number = ?",
                self._waiting,
            )
            self.identities.mark_copied(self._copied)
            self._base.execute("COMMIT")
            self._waiting.clear()
            self._copied.clear()
        self._committed = time.monotonic()

    def counts(self, shard: tuple[int, int] = (1, 1)) -> dict[str, int]:
        """How many items are in each state."""
        return dict(
            self._base.execute(
                "SELECT state, count(*) FROM item WHERE number % ? = ? GROUP BY state", (shard[1], shard[0] - 1)
            ).fetchall()
        )

    def codes(self) -> dict[str, int]:
        """Error code → how many items failed with it."""
        return dict(
            self._base.execute(
                "SELECT code, count(*) FROM item WHERE state = 'failed' GROUP BY code ORDER BY code"
            ).fetchall()
        )

    def results(self) -> Iterator[dict[str, Any]]:
        """What is known of every item that has ended, in the manifest's order."""
        cursor = self._base.execute(
            "SELECT number, source, output, state, attempts, exit_code, code, message, seconds, output_sha256, "  # noqa: S608 (this file's own words)
            f"{TOLD}, document FROM item LEFT JOIN {IDENTITY} USING (number) "
            "WHERE state IN ('done', 'failed') ORDER BY number"
        )
        columns = [column[0] for column in cursor.description]
        for row in cursor:
            found = dict(zip(columns, row, strict=True))
            found["document"] = json.loads(zlib.decompress(found["document"]))
            found["source"] = json.loads(found["source"])
            found["copied"] = bool(found["copied"])
            found["output"] = None if found["output"] is None else json.loads(found["output"])
            yield found


def _text(name: str | None) -> str | None:
    """A path as SQLite can hold it: names need not be text in any encoding."""
    return None if name is None else json.dumps(name)
