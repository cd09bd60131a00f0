"""metadata: what is written in the header of a file, read, and changed by writing the header anew.

What changes something takes `out`, the file to write, or `in_place` for the file itself; `overwrite` and `progress`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from loratools.errors import UnsupportedFile, UsageError, nearest
from loratools.operations.header.edit import Edited, Where, edited, meaning
from loratools.operations.header.hashes import HASH_KEYS
from loratools.operations.header.private import private_keys, stripped
from loratools.operations.header.triggers import Trigger, triggers
from loratools.operations.outputs.provenance import PROVENANCE_KEY
from loratools.operations.references import remote_reference
from loratools.tensors.safetensors_file import SafetensorsFile, open_safetensors
from loratools.tensors.source import TensorSource

OURS = "loratools."
_LIMIT = 16 << 20  # of one value


@dataclass(frozen=True, slots=True)
class Metadata:
    """The entries of a file as stored, the words that call it, and the keys whose values are private."""

    path: str
    entries: Mapping[str, str]
    triggers: tuple[Trigger, ...]
    private: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.metadata/1",
            "path": self.path,
            "metadata": dict(self.entries),
            "triggers": [{"words": list(item.words), "source": item.source} for item in self.triggers],
            "private": list(self.private),
        }


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """The metadata of a safetensors file, of the Hub from its header; PathNotFound, MalformedFile, UnsupportedFile."""
    source = _glanced(path)
    entries = dict(source.metadata)
    return Metadata(source.name, entries, triggers(Path(path), entries), private_keys(entries))


def get_metadata(path: str | os.PathLike[str], key: str) -> str:
    """One value as stored; UsageError with the nearest key where there is none of that name."""
    entries = _glanced(path).metadata
    if key not in entries:
        raise _no_key(key, entries, str(path))
    return entries[key]


def set_metadata(path: str | os.PathLike[str], entries: Mapping[str, str], **where: Unpack[Where]) -> Edited:
    """Add entries, or give them other values; raises UsageError for keys that are not for setting, and as `edited`."""
    source = _open(path)
    for key, value in entries.items():
        _check_entry(key, value, source.name)
    return edited(source, {**source.metadata, **entries}, "set", **where)


def remove_metadata(path: str | os.PathLike[str], keys: Sequence[str], **where: Unpack[Where]) -> Edited:
    """Take entries away; UsageError for a key that is not there, and as `edited`."""
    source = _open(path)
    for key in keys:
        if key not in source.metadata:
            raise _no_key(key, source.metadata, source.name)
    left = {key: value for key, value in source.metadata.items() if key not in keys}
    return edited(source, left, "remove", **where)


def strip_metadata(path: str | os.PathLike[str], *, everything: bool = False, **where: Unpack[Where]) -> Edited:
    """Take away what is private, or everything that is not needed to read the weights."""
    source = _open(path)
    if not everything:
        return edited(source, stripped(source.metadata)[0], "strip", **where)
    adapters = meaning(source, source.metadata)
    kept = dict(source.metadata)
    for key in source.metadata:
        without = {name: value for name, value in kept.items() if name != key}
        if key == PROVENANCE_KEY or meaning(source, without) == adapters:
            kept = without
    return edited(source, kept, "strip", **where)


def settable(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Exported entries without those that are computed or recorded for each file."""
    return {key: value for key, value in entries.items() if key not in HASH_KEYS and not key.startswith(OURS)}


def _glanced(path: str | os.PathLike[str]) -> TensorSource:
    """A file whose header is enough: of the Hub nothing else is fetched."""
    remote = remote_reference(path)
    if remote is None:
        return _open(path)
    from loratools.operations.remote import by_header  # the Hub's client takes most of a second to import

    seen = by_header(remote)
    return _open(path) if seen is None else seen.opened.parts[0].source


def _open(path: str | os.PathLike[str]) -> SafetensorsFile:
    remote = remote_reference(path)
    if remote is not None:
        from loratools.hub.repository import fetched

        path = fetched(remote).path
    if Path(path).is_dir():
        raise UsageError("metadata are a file's", path=path, hint="name the .safetensors file in the folder")
    if Path(path).suffix.lower() in (".ckpt", ".pt", ".pth", ".bin", ".gguf"):
        raise UnsupportedFile("only safetensors files have metadata that can be changed", path=path)
    return open_safetensors(path)


def _no_key(key: str, entries: Mapping[str, str], path: str) -> UsageError:
    hint = nearest(key, list(entries)) or f"loratools metadata show lists the {len(entries)} keys"
    return UsageError(f"the metadata have no {key!r}", path=path, key=key, hint=hint)


def _check_entry(key: str, value: object, path: str) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{key} is {type(value).__name__}: metadata are texts", path=path, key=key, hint="quote it")
    if key in HASH_KEYS or key.startswith(OURS):
        raise UsageError(f"{key} is computed, not set", path=path, key=key, hint="leave it out")
    if not key or len(value.encode()) > _LIMIT:
        raise UsageError("a key needs a name and a value of at most 16 MiB", path=path, key=key)
