"""The results of a batch as a file: JSON Lines or Parquet, one row an item, whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from loratools.errors import UnsupportedFile, UsageError
from loratools.tensors.output import sync_folder, temporary_beside

_GROUP = 4096


def check_results(path: Path) -> None:
    """UsageError for a name that tells no format, UnsupportedFile where Parquet's library is missing."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise UsageError("results are a .jsonl or a .parquet file", path=path)
    if path.suffix == ".parquet":
        _pyarrow(path)


def write_results(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write all rows in place of what was there; how many they were. In Parquet, `document` is JSON text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = temporary_beside(path)
    try:
        count = _lines(staged, rows) if path.suffix == ".jsonl" else _parquet(path, staged, rows)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)
    return count


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True) + "\n")
            count += 1
    return count


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UnsupportedFile("Parquet needs pyarrow", path=path, hint="pip install 'loratools[batch]'") from error
    return pyarrow


def _parquet(path: Path, staged: Path, rows: Iterable[dict[str, Any]]) -> int:
    pyarrow = _pyarrow(path)
    kinds = {
        "number": pyarrow.int64(), "attempts": pyarrow.int32(), "exit_code": pyarrow.int32(),
        "seconds": pyarrow.float64(), "same_as": pyarrow.int64(), "copied": pyarrow.bool_(),
    }  # fmt: skip
    texts = ("source", "output", "state", "code", "message", "output_sha256", "fingerprint", "document")
    schema = pyarrow.schema([*kinds.items(), *((name, pyarrow.string()) for name in texts)])
    count = 0
    with pyarrow.parquet.ParquetWriter(staged, schema) as writer:
        for group in _groups(rows):
            held = [{**_texts(row), "document": json.dumps(row["document"], sort_keys=True)} for row in group]
            writer.write_table(pyarrow.Table.from_pylist(held, schema=schema))
            count += len(held)
    return count


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    """The row with names that are no text spelt out: Parquet's strings are UTF-8."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    source = iter(rows)
    while group := list(islice(source, _GROUP)):
        yield group
