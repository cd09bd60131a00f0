"""The record of how an output was made, in its metadata: inputs with SHA-256, operation, parameters, version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from loratools.errors import InternalError
from loratools.operations.outputs.kept_hashes import keep, kept, seen
from loratools.tensors.reread import Background
from loratools.tensors.source import LocalFile

PROVENANCE_KEY = "loratools.provenance"
PENDING = "0" * 64  # stands for a hash until it is known; every SHA-256 is as long
_BLOCK = 1 << 20


class InputHashes:
    """SHA-256 of every input file, computed on a thread of its own while the output is written.

    `folders` are those that inputs were opened from as a whole.
    """

    def __init__(self, files: Sequence[LocalFile], folders: Sequence[Path] = ()) -> None:
        self.described = described(files, folders)
        self._closed = Event()
        self._found: list[str] = []
        self._thread = Background(lambda: self._found.extend(map(self._sha256, files)), "inputs") if files else None

    @staticmethod
    def awaited(files: Sequence[LocalFile], folders: Sequence[Path] = ()) -> list[dict[str, Any]]:
        """Inputs with a place for each hash; nothing is read."""
        return [{**entry, "sha256": PENDING} for entry in described(files, folders)]

    def beside(self, payload_sha256: str) -> list[dict[str, Any]]:
        """The inputs with their hashes, for which it waits; while the payload's is pending, with a place for each."""
        if payload_sha256 == PENDING:
            return [{**entry, "sha256": PENDING} for entry in self.described]
        return self.inputs()

    def inputs(self) -> list[dict[str, Any]]:
        """The inputs with their hashes; waits for them."""
        if self._thread:
            self._thread.result()
        return [{**entry, "sha256": found} for entry, found in zip(self.described, self._found, strict=True)]

    def close(self) -> None:
        """Stop computing what nobody will ask for, also in the middle of a file: the process ends no sooner."""
        self._closed.set()

    def _sha256(self, file: LocalFile) -> str:
        known = seen(file)
        if (found := kept(known)) is not None:
            return found
        digest, room = hashlib.sha256(), memoryview(bytearray(_BLOCK))
        for start in range(0, file.size, _BLOCK):
            if self._closed.is_set():
                raise InternalError("a hash was wanted after all", path=file.name)
            part = room[: file.size - start]
            file.read_into(start, part)
            digest.update(part)
        keep(known, seen(file), digest.hexdigest())
        return digest.hexdigest()


def described(files: Sequence[LocalFile], folders: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """What a record says of each file but its hash: its name; in a folder that was opened as a whole its name within
    it, the folder's own name, and which of the inputs, counted from 0, that folder is.
    """
    found: list[dict[str, Any]] = []
    last: Path | None = None
    seen: set[str] = set()
    count = -1
    for file in files:
        place = Path(file.name)
        root = max((folder for folder in folders if place.is_relative_to(folder)), key=_depth, default=None)
        if root is None:
            count, last = count + 1, None
            found.append({"name": place.name})
            continue
        name = place.relative_to(root).as_posix()
        if root != last or name in seen:  # the same folder may be two inputs
            count, last, seen = count + 1, root, set()
        seen.add(name)
        found.append({"name": name, "folder": root.resolve().name, "input": count})
    return found


def _depth(folder: Path) -> int:
    return len(folder.parts)


def record(operation: str, parameters: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> str:
    """The record as it stands in the metadata: no time, no path, no host."""
    from loratools import __version__

    given = {key: value for key, value in parameters.items() if value not in (None, False)}
    fields = {"inputs": list(inputs), "operation": operation, "parameters": given, "version": __version__}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
