"""Segments → one open file: neighbouring runs are copied inside the kernel, everything else is gathered and written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

from loratools.errors import ResourceError
from loratools.tensors.segments import CHUNK, Bytes, ByteSource, Segment

SMALLEST_COPY = 64 << 10
"""Runs shorter than this are cheaper to read and gather than to copy one by one."""
LONGEST_COPY = 16 << 20
"""One system call copies no more, so that an interrupt and the progress are not kept waiting."""
_STRETCH = 16 << 20  # what has been written since is sent on to the disk at once

_NOT_HERE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ENOTSOCK)

Report = Callable[[int, bytes | None], None]
"""Told after every write: where the written part of the file ends now, and the bytes of that last part if they passed
through our hands (None where the kernel copied them)."""


class Transfer:
    """Appends segments to an open file from `at` on; nothing is certain to be written before `finish`."""

    def __init__(self, descriptor: int, at: int, report: Report) -> None:
        self.at = at
        self._sent = at
        self._descriptor = descriptor
        self._report = report
        self._run: Bytes | None = None
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._copiers = [
            copy for name, copy in (("copy_file_range", _copy_range), ("sendfile", _send)) if hasattr(os, name)
        ]

    def add(self, segment: Segment) -> None:
        """Appends one segment; a run that goes on where the last one ended becomes part of it."""
        if not isinstance(segment, Bytes):
            self._end_run()
            for chunk in segment.chunks():
                self._gather(chunk)
            return
        run = self._run
        if run is not None and run.source is segment.source and run.offset + run.length == segment.offset:
            self._run = Bytes(run.source, run.offset, run.length + segment.length)
            return
        self._end_run()
        self._run = segment

    def finish(self) -> None:
        """Writes what is still waiting."""
        self._end_run()
        self._write_gathered()

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        descriptor = run.source.fileno() if run.length >= SMALLEST_COPY else None
        copied = 0
        if descriptor is not None:
            self._write_gathered()
            copied = self._copy(run.source, descriptor, run.offset, run.length)
        if copied < run.length:
            for chunk in Bytes(run.source, run.offset + copied, run.length - copied).chunks():
                self._gather(chunk)

    def _copy(self, source: ByteSource, descriptor: int, offset: int, length: int) -> int:
        """How many bytes the kernel copied: all, or fewer where it can copy no more between these two files."""
        done = 0
        while done < length and self._copiers:
            try:
                count = self._copiers[0](
                    descriptor, self._descriptor, min(LONGEST_COPY, length - done), offset + done, self.at
                )
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._copiers.pop(0)
                continue
            if not count:
                raise ResourceError("input changed while reading", path=source.name)
            done += count
            self._written(count, None)
        return done

    def _gather(self, data: bytes) -> None:
        self._gathered.append(data)
        self._gathered_size += len(data)
        if self._gathered_size >= CHUNK:
            self._write_gathered()

    def _write_gathered(self) -> None:
        if not self._gathered_size:
            return
        data = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        self._gathered, self._gathered_size = [], 0
        write_at(self._descriptor, data, self.at)
        self._written(len(data), data)

    def _written(self, count: int, data: bytes | None) -> None:
        self.at += count
        if self.at - self._sent >= _STRETCH and hasattr(os, "posix_fadvise"):
            # It starts on its way to the disk, so that the sync at the end finds little left to do; what is on its way
            # stays in memory, where the second look finds it. Where a file system takes no advice, nothing is lost.
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, self._sent, self.at - self._sent, os.POSIX_FADV_DONTNEED)
            self._sent = self.at
        self._report(self.at, data)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Writes all of `data` at `offset`, however few bytes a single call takes."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        if not count:
            raise OSError(errno.EIO, "a write took no bytes")
        offset += count
        view = view[count:]


def _copy_range(source: int, target: int, count: int, offset: int, at: int) -> int:
    return os.copy_file_range(source, target, count, offset, at)


def _send(source: int, target: int, count: int, offset: int, at: int) -> int:
    os.lseek(target, at, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)
