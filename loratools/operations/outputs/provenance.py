"""The record of how an output was made, in its metadata: inputs with SHA-256, operation, parameters, version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from loratools.errors import InternalError
from loratools.tensors.reread import Background
from loratools.tensors.source import LocalFile

PROVENANCE_KEY = "loratools.provenance"
PENDING = "0" * 64  # stands for a hash until it is known; every SHA-256 is as long
_BLOCK = 1 << 20


class InputHashes:
    """SHA-256 of every input file, computed on a thread of its own while the output is written."""

    def __init__(self, files: Sequence[LocalFile]) -> None:
        self.names = [Path(file.name).name for file in files]
        self._closed = Event()
        self._found: list[str] = []
        self._thread = Background(lambda: self._found.extend(map(self._sha256, files)), "inputs") if files else None

    @staticmethod
    def awaited(files: Sequence[LocalFile]) -> list[dict[str, str]]:
        """Inputs with a place for each hash; nothing is read."""
        return [{"name": Path(file.name).name, "sha256": PENDING} for file in files]

    def pending(self) -> list[dict[str, str]]:
        """The inputs with a place for each hash."""
        return [{"name": name, "sha256": PENDING} for name in self.names]

    def inputs(self) -> list[dict[str, str]]:
        """The inputs with their hashes; waits for them."""
        if self._thread:
            self._thread.result()
        return [{"name": name, "sha256": found} for name, found in zip(self.names, self._found, strict=True)]

    def close(self) -> None:
        """Stop computing what nobody will ask for, also in the middle of a file: the process ends no sooner."""
        self._closed.set()

    def _sha256(self, file: LocalFile) -> str:
        digest, room = hashlib.sha256(), memoryview(bytearray(_BLOCK))
        for start in range(0, file.size, _BLOCK):
            if self._closed.is_set():
                raise InternalError("a hash was wanted after all", path=file.name)
            part = room[: file.size - start]
            file.read_into(start, part)
            digest.update(part)
        return digest.hexdigest()


def record(operation: str, parameters: Mapping[str, Any], inputs: Sequence[Mapping[str, str]]) -> str:
    """The record as it stands in the metadata: no time, no path, no host."""
    from loratools import __version__

    given = {key: value for key, value in parameters.items() if value not in (None, False)}
    fields = {"inputs": list(inputs), "operation": operation, "parameters": given, "version": __version__}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
