"""SHA-256 of large input files, kept while the process lives: a base that many adapters are merged into is hashed once.

Of all that a merge reads of its base, this alone is worth keeping: the weights stream through, from the system's cache
of files to the output, and the header is read in milliseconds.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from loratools.tensors.source import LocalFile

LEAST = 64 << 20
"""Bytes; smaller files are hashed as quickly as they are looked up, near enough."""
SETTLED = 2_000_000_000
"""Nanoseconds; a clock of files may be that coarse, so that a younger file could change and still look the same."""
_MOST = 64


class _Seen(NamedTuple):
    """What changes with a file's bytes: no program can set the time of its last status change."""

    device: int
    inode: int
    size: int
    changed: int
    status_changed: int


_kept: dict[_Seen, str] = {}


def seen(file: LocalFile) -> _Seen | None:
    """What a file is known by as it stands now; None where it is small, or was changed a moment ago."""
    found = os.fstat(file.fileno())
    if found.st_size < LEAST or time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED:
        return None
    return _Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def kept(known: _Seen | None) -> str | None:
    """The hash of a file that was hashed when it was `seen` so; None where there is none."""
    return None if known is None else _kept.get(known)


def keep(before: _Seen | None, after: _Seen | None, sha256: str) -> None:
    """Remember what was found, if the file was the same before and after."""
    if before is None or before != after:
        return
    for oldest in list(_kept)[: max(0, len(_kept) - _MOST + 1)]:  # a list: other threads keep hashes, too
        _kept.pop(oldest, None)
    _kept[before] = sha256
