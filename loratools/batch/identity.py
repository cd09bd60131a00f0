"""What an item's adapters are: their fingerprint, and one digest of all that the item's output is made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loratools.batch.verbs import batch_verb
from loratools.errors import LoratoolsError
from loratools.formats.opening import CONFIG
from loratools.hub.references import is_remote
from loratools.operations.merging.scales import weighted
from loratools.operations.outputs.provenance import described

File = tuple[str, int, int]
"""A path, its bytes, and when it was last changed (ns)."""


class Identity(NamedTuple):
    """`content` is equal where the outputs must be, but for the `names` of input files as records have them (JSON).

    `fingerprint` is that of the only adapter, None where there are several. `files` are all that was read.
    """

    fingerprint: str | None
    content: str | None
    names: tuple[str, ...]
    files: tuple[File, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, which travels from a worker to the driver."""
        return self._asdict()


UNKNOWN = Identity(None, None, (), ())
"""What cannot be known, which equals nothing."""


class _Words(NamedTuple):
    """The words of an item, sorted: what is neither an adapter nor the output, and the adapters."""

    others: tuple[str, ...]
    adapters: tuple[str, ...]


def _sorted(words: Sequence[str]) -> _Words:
    verb = batch_verb(words[0])
    end = 1 + len(verb.columns) if verb.output == "positional" else words.index("-o")
    first = 1 + verb.columns.index(verb.listed)
    last = end if verb.many else first + 1
    after = end + 1 if verb.output == "positional" else end + 2
    return _Words((*words[:first], *words[last:end], *words[after:]), tuple(words[first:last]))


def identity(words: Sequence[str]) -> Identity:
    """The identity of an item by its words; UNKNOWN for what cannot be read, is on the Hub, or asks for its base."""
    told = _sorted(words)
    if "auto" in told.others or any(is_remote(word) for word in told.adapters):
        return UNKNOWN  # a card beside the adapter decides then; and the Hub is not asked for files twice
    several = batch_verb(words[0]).many != ""
    pairs = [weighted(word) if several else (word, 1.0) for word in told.adapters]
    try:
        found = [(_of_adapter(path), scale) for path, scale in pairs]
    except (LoratoolsError, OSError):
        return UNKNOWN  # the item itself will say what is wrong
    digest = hashlib.sha256(json.dumps([told.others, [(one.content, scale) for one, scale in found]]).encode())
    return Identity(
        found[0][0].fingerprint if len(found) == 1 else None,
        digest.hexdigest(),
        tuple(name for one, _ in found for name in one.names),
        tuple(file for one, _ in found for file in one.files),
    )


def _of_adapter(path: str) -> Identity:
    from loratools.operations.hash import fingerprint_of
    from loratools.operations.references import open_reference
    from loratools.tensors.checksums import sha256_of

    opened = open_reference(path)
    weights = [file.name for file in opened.files]
    beside = (
        {str(Path(name).with_name(CONFIG)) for name in weights} if any(part.config for part in opened.parts) else ()
    )
    files = [*weights, *sorted(name for name in beside if os.path.isfile(name))]  # noqa: PTH113 (names, not paths)
    stood = [_file(name) for name in files]
    sums = [sha256_of(Path(name)) for name in files]
    found = fingerprint_of(opened)
    read = [opened.layout, [part.component for part in opened.parts], [Path(name).suffix for name in weights], sums]
    folders = [Path(opened.name)] if Path(opened.name).is_dir() else []
    names = tuple(json.dumps(entry, sort_keys=True) for entry in described(opened.files, folders))
    content = hashlib.sha256(json.dumps(read).encode()).hexdigest()
    return Identity(found, content, names, tuple(stood))


def _file(name: str) -> File:
    found = os.stat(name)  # noqa: PTH116 (as it stands in a word)
    return name, found.st_size, found.st_mtime_ns


def unchanged(files: Sequence[File]) -> bool:
    """Whether files are as they were when they were identified."""
    try:
        return all(_file(name) == (name, size, changed) for name, size, changed in files)
    except OSError:
        return False
