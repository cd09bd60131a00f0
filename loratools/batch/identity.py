"""What an item's adapters are: their fingerprint, and one digest of all that the item's output is made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from loratools.batch.verbs import batch_verb
from loratools.formats.opening import CONFIG
from loratools.hub.references import hub_reference, is_remote
from loratools.operations.merging.scales import weighted
from loratools.operations.outputs.provenance import described

File = tuple[str, int, int]
"""A path, its bytes, and when its status was last changed (ns), a time that no program can set."""


class Identity(NamedTuple):
    """`content` is equal where the outputs must be, but for the `names` of input files as records have them (JSON).

    `fingerprint` is that of the only adapter, None where there are several. `files` are all that the output is made of.
    """

    fingerprint: str | None
    content: str | None
    names: tuple[str, ...]
    files: tuple[File, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, which travels from a worker to the driver."""
        return self._asdict()


_BASE = "--base"
UNKNOWN = Identity(None, None, (), ())
"""What cannot be known, which equals nothing."""


class _Words(NamedTuple):
    """The words of an item, sorted: what is neither an adapter nor the output, the adapters, and the bases."""

    others: tuple[str, ...]
    adapters: tuple[str, ...]
    bases: tuple[str, ...]


def _sorted(words: Sequence[str]) -> _Words:
    verb = batch_verb(words[0])
    end = 1 + len(verb.columns) if verb.output == "positional" else words.index("-o")
    first = 1 + verb.columns.index(verb.listed)
    last = end if verb.many else first + 1
    options = words[end + 1 if verb.output == "positional" else end + 2 :]
    told = [value for name, value in pairwise(options) if name == _BASE]
    told += [word.removeprefix(f"{_BASE}=") for word in options if word.startswith(f"{_BASE}=")]
    return _Words((*words[:first], *words[last:end], *options), tuple(words[first:last]), (*words[1:first], *told))


def inputs(words: Sequence[str]) -> list[str]:
    """The adapters of an item by its words, without their scales, and then its bases."""
    told = _sorted(words)
    return [*(path for path, _ in _weighted(words[0], told.adapters)), *told.bases]


def _weighted(verb: str, adapters: Sequence[str]) -> list[tuple[str, float]]:
    return [weighted(word) if batch_verb(verb).many else (word, 1.0) for word in adapters]


def identity(words: Sequence[str]) -> Identity:
    """The identity of an item by its words; UNKNOWN for what cannot be read, asks for its base, is an adapter on the
    Hub, or a base there that may be another tomorrow.
    """
    told = _sorted(words)
    if "auto" in told.others or any(is_remote(word) for word in told.adapters):
        return UNKNOWN  # a card beside the adapter decides then; and the Hub is not asked for files twice
    try:
        if any(_moves(base) for base in told.bases):
            return UNKNOWN
        stood = [_file(name) for base in told.bases for name in _below(base)]
        found = [(_of_adapter(path), scale) for path, scale in _weighted(words[0], told.adapters)]
    except Exception:  # noqa: BLE001 (whatever is wrong, want of memory too, the item itself will say it)
        return UNKNOWN
    digest = hashlib.sha256(json.dumps([told.others, [(one.content, scale) for one, scale in found]]).encode())
    return Identity(
        found[0][0].fingerprint if len(found) == 1 else None,
        digest.hexdigest(),
        tuple(name for one, _ in found for name in one.names),
        (*(file for one, _ in found for file in one.files), *stood),
    )


def _moves(base: str) -> bool:
    """Whether a base is on the Hub, and named by what may be another commit tomorrow."""
    reference = hub_reference(base)
    return reference is not None and not reference.is_pinned


def _below(base: str) -> list[str]:
    """The files of a base here: itself, or all in its folder; an index's shards are beside it."""
    place = Path(base).parent if base.endswith(".json") else Path(base)
    if not place.is_dir():
        return [base] if place.exists() else []
    return [str(item) for item in sorted(place.rglob("*")) if item.is_file()]


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
    return name, found.st_size, found.st_ctime_ns


def unchanged(files: Sequence[File]) -> bool:
    """Whether files are as they were when they were identified."""
    try:
        return all(_file(name) == (name, size, changed) for name, size, changed in files)
    except OSError:
        return False
