"""How an item ended, and its output as it stands on the disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from loratools.tensors.checksums import sha256_of


class Answer(NamedTuple):
    """How an item ended: its exit code, the document that it printed, its seconds, and its output as it stands.

    `copied` where the output is that of an item that holds the same.
    """

    exit_code: int
    document: dict[str, Any]
    seconds: float
    output_size: int | None = None
    output_time: int | None = None
    output_sha256: str | None = None
    copied: bool = False


def standing(output: Path) -> tuple[int | None, int | None]:
    """The size of an output and when it was last changed (ns): of all files, for a folder; None where it is missing."""
    try:
        if output.is_dir():
            files = [item.stat() for item in sorted(output.rglob("*")) if item.is_file()]
        else:
            files = [output.stat()]
    except OSError:
        return None, None
    return sum(item.st_size for item in files), max((item.st_mtime_ns for item in files), default=0)


def sha256_of_output(place: Path) -> str:
    """The SHA-256 of a file; of the names and SHA-256 of a folder's files, in order, for a folder."""
    if not place.is_dir():
        return sha256_of(place)
    digest = hashlib.sha256()
    for item in sorted(place.rglob("*")):
        if item.is_file():
            digest.update(f"{item.relative_to(place).as_posix()}\0{sha256_of(item)}\n".encode())
    return digest.hexdigest()
