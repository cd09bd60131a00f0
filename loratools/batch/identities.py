"""What a state knows of its items' identities: who holds the same as one before it, and whose output is a copy."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loratools.batch.identity import UNKNOWN, Identity, unchanged
from loratools.batch.items import Item, Twin

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (
    number INTEGER PRIMARY KEY, fingerprint TEXT, content TEXT, names TEXT NOT NULL, files TEXT NOT NULL,
    copied INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS identity_content ON identity (content, number);
"""
_BEFORE = (
    "EXISTS (SELECT 1 FROM identity AS ours JOIN identity AS theirs USING (content) "
    "WHERE ours.number = item.number AND theirs.number < ours.number)"
)
ALL, FIRSTS, COPIES = "1", f"NOT {_BEFORE}", _BEFORE
"""Which items to do, as SQL."""
IDENTITY = (
    "(SELECT number, fingerprint, copied, CASE WHEN coalesce(fingerprint, content) IS NOT NULL "
    "THEN min(number) OVER (PARTITION BY coalesce(fingerprint, content)) END AS first FROM identity)"
)
TOLD = "fingerprint, nullif(first, number) AS same_as, coalesce(copied, 0) AS copied"
"""What a row of the results tells of it, as SQL over IDENTITY."""


class Identities:
    """The identities in an open state."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base
        base.executescript(_SCHEMA)

    def lacking(self, todo: Iterable[Item]) -> Iterator[Item]:
        """Of items to do those that are not known, or whose files have changed since, each asking for its identity."""
        for item in todo:
            held = self._base.execute("SELECT files FROM identity WHERE number = ?", (item.number,)).fetchone()
            if held is None or not unchanged(json.loads(held[0])):
                yield item._replace(identify=True, output=None)

    def record(self, found: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep the identities of items by their numbers; an error's document is that of an unknown one."""
        rows = []
        for number, document in found:
            one = Identity(**document) if "content" in document else UNKNOWN
            rows.append((number, one.fingerprint, one.content, json.dumps(one.names), json.dumps(one.files)))
        self._base.execute("BEGIN")
        self._base.executemany(
            "INSERT OR REPLACE INTO identity (number, fingerprint, content, names, files) VALUES (?, ?, ?, ?, ?)", rows
        )
        self._base.execute("COMMIT")

    def mark_copied(self, found: Iterable[tuple[bool, int]]) -> None:
        """Say, within the transaction that keeps their answers, whether the outputs of items are copies."""
        self._base.executemany("UPDATE identity SET copied = ? WHERE number = ?", found)

    def copied(self) -> int:
        """How many outputs are copies."""
        found = self._base.execute(
            "SELECT count(*) FROM identity JOIN item USING (number) WHERE copied AND state = 'done'"
        ).fetchone()
        return int(found[0])

    def with_twin(self, item: Item) -> Item:
        """The item with the first that is done and holds the same, if there is one."""
        found = self._base.execute(
            "SELECT words, output, output_size, output_time, output_sha256, document, theirs.names, ours.names, "
            "theirs.files, ours.files FROM identity AS ours JOIN identity AS theirs USING (content) "
            "JOIN item ON item.number = theirs.number WHERE ours.number = ? AND theirs.number < ours.number "
            "AND state = 'done' AND exit_code = 0 AND output IS NOT NULL ORDER BY theirs.number LIMIT 1",
            (item.number,),
        ).fetchone()
        if found is None:
            return item
        words, output, size, time, sha256, document, their_names, our_names, their_files, our_files = found
        twin = Twin(
            words=tuple(json.loads(words)),
            output=json.loads(output),
            size=size,
            time=time,
            sha256=sha256,
            document=zlib.decompress(document).decode(),
            names=(tuple(json.loads(their_names)), tuple(json.loads(our_names))),
            files=tuple(
                (name, length, changed) for name, length, changed in (*json.loads(their_files), *json.loads(our_files))
            ),
        )
        return item._replace(twin=twin)
