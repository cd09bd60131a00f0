"""The output of an item that holds the same as one that is done: linked, or written again under another record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratools.batch.answer import Answer, sha256_of_output, standing
from loratools.batch.identity import inputs, unchanged
from loratools.batch.items import Item, Twin
from loratools.batch.verbs import batch_verb
from loratools.errors import LoratoolsError
from loratools.operations.outputs.provenance import PROVENANCE_KEY
from loratools.tensors.output import NO_LINKS, guard_output, sync_folder, temporary_beside
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.writer import write

_WEIGHTS, _GGUF = ".safetensors", ".gguf"


def copied(item: Item) -> Answer | None:
    """The answer of an item whose output is now its twin's; None where the command itself has to be run.

    A file of the same input names is the twin's file under a second name (a copy, where the file system has no links).
    Of other input names, which stand in an output's record, it is written with those; of a merge it is not.
    """
    twin = item.twin
    if twin is None or item.output is None or not unchanged(twin.files):
        return None
    first, place = Path(twin.output), Path(item.output)
    names = None if twin.names[0] == twin.names[1] else twin.names
    if standing(first) != (twin.size, twin.time) or (names is not None and batch_verb(item.words[0]).many):
        return None
    paths = _paths(item, twin)
    if paths is None:
        return None
    try:
        if names is not None and sha256_of_output(first) != twin.sha256:
            return None
        if not (_is_free(place, first, item) and _placed(first, place, names)):
            return None
        size, changed = standing(place)
        sha256 = sha256_of_output(place)
        if names is None and sha256 != twin.sha256:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
            return None
    except (LoratoolsError, OSError):
        return None  # what is wrong with this disk, the command will say in its own words
    document = json.loads(twin.document)
    if document.get("size") == twin.size:
        document["size"] = size  # a record with other names is longer, or shorter
    return Answer(0, _renamed(document, paths), 0.0, size, changed, sha256, copied=True)


def _paths(item: Item, twin: Twin) -> dict[str, str] | None:
    """This item's path for every path of its twin; None where one of those would be two."""
    ours, theirs = (inputs(item.words), str(item.output)), (inputs(twin.words), twin.output)
    pairs = {*zip(theirs[0], ours[0], strict=True), (theirs[1], ours[1])}
    return dict(pairs) if len(dict(pairs)) == len(pairs) else None


def _is_free(place: Path, first: Path, item: Item) -> bool:
    """Whether nothing stands there but what an earlier try of this item left there; that is taken away."""
    if (place.suffix == _WEIGHTS) if first.is_dir() else (place.suffix != first.suffix):
        return False  # a place that the command would refuse, or put something else at
    folders = [source for source in map(Path, inputs(item.words)) if source.is_dir()]
    if any(place.resolve().is_relative_to(folder.resolve()) for folder in folders):
        return False
    if not os.path.lexists(place):
        guard_output(place, (), overwrite=False)
        return True
    if not item.begun or place.is_symlink() or place.is_dir() or first.is_dir():
        return False
    place.unlink()
    return True


def _placed(first: Path, place: Path, names: tuple[Sequence[str], Sequence[str]] | None) -> bool:
    """Put it there, whole or not at all; False where its records are not the ones that were expected."""
    if not first.is_dir():
        if not _one(first, place, names):
            return False
    else:
        staged = temporary_beside(place)
        try:
            for source in sorted(first.rglob("*")):
                target = staged / source.relative_to(first)
                if source.is_dir():
                    target.mkdir(parents=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not _one(source, target, names):
                        return False
            for folder in (staged, *(child for child in staged.rglob("*") if child.is_dir())):
                sync_folder(folder)
            staged.rename(place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    sync_folder(place.parent)
    return True


def _one(source: Path, target: Path, names: tuple[Sequence[str], Sequence[str]] | None) -> bool:
    if names is not None and source.suffix == _WEIGHTS:
        return _retold(source, target, *names)
    if names is not None and source.suffix == _GGUF:
        return False  # its record is in a header of another make
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy(source, target)
    return True


def _copy(source: Path, target: Path) -> None:
    staged = temporary_beside(target)
    try:
        shutil.copy(source, staged)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.rename(target)
    finally:
        staged.unlink(missing_ok=True)


def _retold(source: Path, target: Path, theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """Write the same tensors in the same order under a record that names our input files in the place of theirs."""
    held = open_safetensors(source)
    record = json.loads(held.metadata.get(PROVENANCE_KEY, "{}"))
    inputs = record.get("inputs", [])
    named = [{key: value for key, value in entry.items() if key != "sha256"} for entry in inputs]
    if named != [json.loads(entry) for entry in theirs]:
        return False
    record["inputs"] = [
        {**json.loads(mine), "sha256": entry["sha256"]} for mine, entry in zip(ours, inputs, strict=True)
    ]
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    write(target, {key: held[key] for key in held}, {**held.metadata, PROVENANCE_KEY: text}, keep_order=True)
    return True


def _renamed(document: Any, paths: Mapping[str, str]) -> Any:
    """The document with this item's paths in the place of its twin's."""
    if isinstance(document, dict):
        return {key: _renamed(value, paths) for key, value in document.items()}
    if isinstance(document, list):
        return [_renamed(value, paths) for value in document]
    return paths.get(document, document) if isinstance(document, str) else document
