"""Files that a new folder takes over from elsewhere: a second name for the same bytes, or a copy of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loratools.errors import InternalError
from loratools.tensors.produce import Written, copy_plain
from loratools.tensors.source import LocalFile


@dataclass(frozen=True, slots=True)
class Linked:
    """A file to hard-link where the file system can, and to copy where it cannot."""

    file: LocalFile


@dataclass(frozen=True, slots=True)
class LateBytes:
    """A file of `size` bytes whose content is known only when its turn comes."""

    size: int
    make: Callable[[], bytes]


def link(path: Path, file: LocalFile) -> Written | None:
    """A hard link at `path` to the very file that was opened, synced; None where the file system gives none."""
    try:
        os.link(os.path.realpath(file.path), path)  # of a symbolic link the system would make another one
    except OSError:  # another file system, one without links, too many of them, or somebody else's file: copied then
        return None
    found = path.lstat()
    if (found.st_dev, found.st_ino) != file.identity[:2]:
        path.unlink()
        file.check_unchanged()
        return None
    with suppress(OSError):  # somebody else's file system may refuse to sync what is opened for reading
        os.fsync(file.fileno())
    return Written(path, file.size, None)


def carry(path: Path, content: bytes | LocalFile | Linked | LateBytes) -> Written:
    """Put plain content at `path`: linked, or copied, verified and synced."""
    if isinstance(content, Linked):
        return link(path, content.file) or copy_plain(path, content.file)
    if isinstance(content, LateBytes):
        made = content.make()
        if len(made) != content.size:
            raise InternalError(f"{len(made)} bytes were made where {content.size} were planned", path=path)
        return copy_plain(path, made)
    return copy_plain(path, content)


def needed_bytes(content: bytes | LocalFile | Linked | LateBytes, device: int) -> int:
    """The disk space that plain content takes on a file system."""
    if isinstance(content, Linked) and content.file.identity.device == device:
        return 0
    return plain_size(content)


def plain_size(content: bytes | LocalFile | Linked | LateBytes) -> int:
    """The size of plain content, in bytes."""
    if isinstance(content, bytes):
        return len(content)
    return content.file.size if isinstance(content, Linked) else content.size
