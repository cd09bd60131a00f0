"""One complete, verified and synced file under a temporary name; whoever asked for it renames or removes it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loratools.errors import InternalError
from loratools.tensors.layout import Layout
from loratools.tensors.reread import Background, Rereading
from loratools.tensors.segments import Bytes, MemoryBytes
from loratools.tensors.source import LocalFile
from loratools.tensors.transfer import Transfer, write_at

Progress = Callable[[int, int], None]
"""Told the bytes written so far and the bytes in all."""


class Written(NamedTuple):
    """A finished file: its size in bytes, and the SHA-256 of what follows its header (of all, for a plain file), or
    None where none was wanted.
    """

    path: Path
    size: int
    payload_sha256: str | None


def produce(
    path: Path,
    layout: Layout,
    *,
    before: os.stat_result | None = None,
    progress: Progress | None = None,
    check: Callable[[Path], None] | None = None,
    digest: bool = True,
) -> Written:
    """A complete, verified and synced file at `path`, which must not exist; the caller removes it on failure.

    Without `digest` the bytes that the kernel copied are verified by `check` alone, which then must compare them.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    rereading: Rereading | None = None
    try:
        if before is not None:
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
        _reserve(descriptor, layout.size)
        write_at(descriptor, layout.header, 0)
        rereading = Rereading(path, len(layout.header), digest=digest)
        _stream(descriptor, layout, rereading, progress)
        syncing = Background(lambda: _sync_data(descriptor), "sync")
        if check is not None:
            check(path)
        payload = rereading.sha256()
        syncing.result()
        header, metadata = layout.final(payload)
        if header != layout.header:
            write_at(descriptor, header, 0)
        os.fsync(descriptor)
        _compare(path, header)
        if check is None:
            layout.compare(path, metadata)
    except BaseException:
        if rereading is not None:
            rereading.cancel()
        raise
    finally:
        os.close(descriptor)
    return Written(path, layout.size, payload)


def _reserve(descriptor: int, size: int) -> None:
    """Takes the disk space at once, so that a full disk is known before the work is done."""
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _sync_data(descriptor: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def _stream(descriptor: int, layout: Layout, rereading: Rereading, progress: Progress | None) -> None:
    def report(stop: int, data: bytes | None) -> None:
        rereading.reached(stop, data)
        if progress is not None:
            progress(stop, layout.size)

    transfer = Transfer(descriptor, len(layout.header), report)
    for key in layout.entries:
        for segment in layout.tensors[key].segments:
            transfer.add(segment)
    transfer.finish()
    if transfer.at != layout.size:
        raise InternalError(f"{transfer.at} bytes were written where {layout.size} were planned")


def _compare(path: Path, header: bytes) -> None:
    """Whether the file begins with this header, as the disk's side has it."""
    with LocalFile(path) as file:
        if file.read(0, len(header)) != header:
            raise InternalError("the written header is not the planned one", path=path)


def copy_plain(path: Path, content: bytes | LocalFile) -> Written:
    """A verified and synced copy, at `path`, of bytes or of a whole file."""
    source = MemoryBytes(content) if isinstance(content, bytes) else content
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rereading = Rereading(path, 0)
        try:
            transfer = Transfer(descriptor, 0, rereading.reached)
            transfer.add(Bytes(source, 0, source.size))
            transfer.finish()
            digest = rereading.sha256()
        except BaseException:
            rereading.cancel()
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Written(path, transfer.at, digest)
