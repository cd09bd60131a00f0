"""Manifests: rows of columns from a CSV or JSON Lines file, a folder, a pattern, or a list of paths."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from loratools.errors import MalformedFile, PathNotFound, UsageError
from loratools.formats.opening import CONFIG
from loratools.hub.references import is_remote

Row = dict[str, Any]
_WEIGHTS = ".safetensors"


def rows(manifest: str | os.PathLike[str] | Iterable[str | Mapping[str, Any]], listed: str) -> Iterator[Row]:
    """The rows of a manifest; of a list of files, each in the column `listed`.

    A .csv file has a line of column names first, a .jsonl file one object a line, a .txt file one path a line; their
    relative paths are relative to the file's folder. A folder stands for every .safetensors file and every PEFT adapter
    folder below it, in the order of their names, `hf://owner/name` and `hf://owner` for the adapters there, at their
    commits. Raises PathNotFound, MalformedFile with the line, Unavailable, and UsageError for what is none of these.
    """
    if not isinstance(manifest, str | os.PathLike):
        for item in manifest:
            yield {listed: item} if isinstance(item, str) else dict(item)
        return
    path = Path(manifest)
    if is_remote(manifest):
        from loratools.hub.catalogue import catalogue  # the Hub's client, for a manifest that is there alone

        yield from ({listed: name} for name in catalogue(str(manifest)))
    elif path.is_dir():
        yield from ({listed: str(found)} for found in _below(path))
    elif path.suffix.lower() == ".csv":
        yield from _csv(path)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _lines(path)
    elif path.suffix.lower() in (".txt", ".lst"):
        yield from ({listed: line} for line in _paths(path))
    elif has_magic(os.fspath(manifest)):
        found = sorted(glob(os.fspath(manifest), recursive=True))  # noqa: PTH207 (it may be absolute)
        if not found:
            raise PathNotFound("the pattern matches nothing", path=manifest)
        yield from ({listed: name} for name in found)
    elif path.exists():
        raise UsageError(
            "a manifest is a .csv, .jsonl or .txt file, a folder or a pattern", path=path, hint=f"'{path.parent}/*'"
        )
    else:
        raise PathNotFound("no such manifest", path=path)


def home_of(manifest: object) -> Path | None:
    """The folder that a manifest's relative paths start from, or None for the working folder."""
    if isinstance(manifest, str | os.PathLike) and Path(manifest).is_file():
        return Path(manifest).parent
    return None


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        if CONFIG in names:
            folders.clear()
            yield Path(root)
            continue
        yield from (Path(root) / name for name in sorted(names) if name.endswith(_WEIGHTS))


def _open(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline="" if path.suffix.lower() == ".csv" else None)
    except FileNotFoundError as error:
        raise PathNotFound("no such manifest", path=path) from error


def _paths(path: Path) -> Iterator[str]:
    with _open(path) as file:
        try:
            yield from (line.rstrip("\n") for line in file if line.strip())
        except UnicodeDecodeError as error:
            raise MalformedFile(f"no text: {error}", path=path) from error


def _csv(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise MalformedFile(f"line {reader.line_num} has not as many cells as the first", path=path)
                yield {key: value for key, value in row.items() if value != ""}
        except (csv.Error, UnicodeDecodeError) as error:
            raise MalformedFile(f"line {reader.line_num + 1} is no CSV: {error}", path=path) from error


def _lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise MalformedFile(f"line {number} is no JSON object", path=path)
                yield row
        except ValueError as error:
            raise MalformedFile(f"not JSON Lines: {error}", path=path) from error
