"""Tensors parked on disk while their file cannot be laid out yet: one unlinked temporary that ends with its process."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

from loratools.errors import ResourceError
from loratools.tensors.lazy import Bytes, LazyTensor
from loratools.tensors.output import disk_errors, temporary_beside
from loratools.tensors.source import LocalFile
from loratools.tensors.transfer import write_at


class Spool:
    """A file without a name that takes tensors from any thread and gives each back as a LazyTensor over its bytes.

    It lies in the folder of `beside`, so that what is parked there is copied by the kernel when the output is written,
    and the space is that of the disk that the output needs; without one, where temporary files go. Nothing stays behind
    however the process ends. Raises ResourceError where the disk is full or the folder cannot be written.
    """

    def __init__(self, beside: Path | None = None) -> None:
        target = beside if beside is not None else Path(tempfile.gettempdir()) / "loratools"
        self._target = target
        with disk_errors(target):
            self._file = _unlinked(target)
        self._lock = threading.Lock()
        self._end = 0
        self._closed = False

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes) -> LazyTensor:
        """Parks the bytes of a tensor; raises ResourceError once the spool is closed."""
        with self._lock:
            if self._closed:  # a thread that nobody waited for: the number of the file may be another file's by now
                raise ResourceError("the spool is closed", path=self._target)
            start, self._end = self._end, self._end + len(data)
            with disk_errors(self._target, self._end):
                write_at(self._file.fileno(), data, start)
        return LazyTensor(dtype, shape, (Bytes(self._file, start, len(data)),) if data else ())

    def close(self) -> None:
        """Gives the space back; the tensors can no longer be read."""
        with self._lock:
            self._closed = True
            self._file.close()


def _unlinked(target: Path) -> LocalFile:
    """An open file in the folder of `target` that has no name."""
    if hasattr(os, "O_TMPFILE"):
        try:
            descriptor = os.open(target.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            return LocalFile.of_descriptor(descriptor, "<spool>")
        except OSError:
            pass  # not every file system knows it: a name that is removed at once does the same
    path = temporary_beside(target)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return LocalFile.of_descriptor(descriptor, "<spool>")
