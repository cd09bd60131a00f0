"""Another header before the same tensors, which must say the same of the weights; stated hashes are computed anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from loratools.adapters.kind import constraint_of
from loratools.adapters.settings import beyond_scale
from loratools.errors import LoratoolsError, MalformedFile, NotRepresentable, UsageError, WrongRole
from loratools.formats.opening import Opened, Part
from loratools.formats.parse import parse
from loratools.operations.header.hashes import HASH_KEYS, recomputed
from loratools.operations.header.triggers import triggers
from loratools.operations.outputs.provenance import PROVENANCE_KEY, InputHashes, record
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.safetensors_file import SafetensorsFile, open_safetensors
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import Progress, write


@dataclass(frozen=True, slots=True)
class Edited:
    """A file with other metadata: each changed key as "set", "removed", "shortened", "recomputed" or "recorded"."""

    path: Path
    source: str
    size: int
    changes: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.metadata-edit/1",
            "path": str(self.path),
            "source": self.source,
            "size": self.size,
            "changes": dict(self.changes),
            "warnings": list(self.warnings),
        }


class Where(TypedDict, total=False):
    """Where edited metadata go: a new file, or the file itself, which a complete new one replaces."""

    out: str | os.PathLike[str] | None
    in_place: bool
    overwrite: bool
    progress: Progress | None


def edited(source: SafetensorsFile, entries: Mapping[str, str], verb: str, **where: Unpack[Where]) -> Edited:
    """Write the same tensors, in the same order, under other metadata; hashes that are stated are computed anew.

    Raises UsageError where no place is named or two are, NotRepresentable where the change would change how the weights
    are read (an alpha, for example), OutputExists, OutputRefused and ResourceError.
    """
    out, in_place = where.get("out"), where.get("in_place", False)
    if (out is None) != in_place:
        raise UsageError("an edit needs one place", path=source.name, hint="-o OUT, or --in-place for the file itself")
    target = Path(source.name if out is None else out)
    _require_same_meaning(source, entries)
    before = source.metadata
    changes = {key: "removed" for key in before if key not in entries}
    changes |= {key: _word(verb) for key, value in entries.items() if before.get(key) != value}
    tensors = {key: source[key] for key in source}
    keys, hashes = sorted(changes), InputHashes(source.files)

    def late(payload_sha256: str) -> Mapping[str, str]:
        inputs = hashes.beside(payload_sha256)
        found = {PROVENANCE_KEY: record(f"metadata {verb}", {"keys": keys}, inputs)}
        return found | recomputed(entries, tensors, payload_sha256)

    try:
        written = write(
            target,
            tensors,
            entries,
            inputs=() if in_place else source.files,
            overwrite=in_place or where.get("overwrite", False),
            keep_order=True,
            progress=where.get("progress"),
            check=_unchanged(source.files) if in_place else None,
            late_metadata=late,
        )
    finally:
        hashes.close()
    after = open_safetensors(target).metadata
    changes |= {key: "recomputed" for key in HASH_KEYS if key in after and after[key] != before.get(key)}
    changes[PROVENANCE_KEY] = "recorded"
    lost = [item for item in triggers(target, dict(before)) if item.source in changes and item.source not in after]
    warnings = tuple(
        f"the words that call it were in {item.source}: {', '.join(item.words[:5])}; "
        "modelspec.trigger_phrase is the place for them"
        for item in lost
    )
    return Edited(target, source.name, written.size, dict(sorted(changes.items())), warnings)


def _word(verb: str) -> str:
    return "shortened" if verb == "strip" else "set"


def _unchanged(files: Sequence[LocalFile]) -> Callable[[Path], None]:
    def check(_: Path) -> None:
        for file in files:
            file.check_unchanged()

    return check


def _require_same_meaning(source: SafetensorsFile, entries: Mapping[str, str]) -> None:
    """Raise NotRepresentable, naming the key, where the adapters would be read in another way."""
    before = meaning(source, source.metadata)
    if meaning(source, entries) == before:
        return
    for key in {**source.metadata, **entries}:
        alone = {name: value for name, value in source.metadata.items() if name != key}
        if key in entries:
            alone[key] = entries[key]
        if meaning(source, alone) != before:
            raise NotRepresentable(
                f"{key} says how the weights are read: changing it would change the adapter",
                path=source.name,
                key=key,
                hint="leave it as it is",
            )
    raise NotRepresentable("these changes together would change how the weights are read", path=source.name)


def meaning(source: SafetensorsFile, metadata: Mapping[str, str]) -> list[Any] | None:
    """What the tensors mean under these metadata, without their values; None for what is no adapter."""
    view = _Retold(source, metadata)
    try:
        found = parse(Opened(source.name, (Part(None, view),)))
    except LoratoolsError as error:
        if error.exit_code not in (MalformedFile.exit_code, WrongRole.exit_code):
            raise  # a disk that fails is no reason to take a file for no adapter
        return None
    return [
        (item.target, item.kind, item.scale, constraint_of(item), sorted(beyond_scale(item.settings).items()))
        for item in found.adapters.adapters
    ]


class _Retold:
    """A file's tensors with other metadata."""

    def __init__(self, source: SafetensorsFile, metadata: Mapping[str, str]) -> None:
        self._source, self.metadata = source, metadata
        self.name, self.files = source.name, source.files

    def keys(self) -> Sequence[str]:
        return self._source.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __getitem__(self, key: str) -> LazyTensor:
        return self._source[key]

    def __len__(self) -> int:
        return len(self._source)
