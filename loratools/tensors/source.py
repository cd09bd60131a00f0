"""Where named tensors come from: the TensorSource protocol, local files read safely, and tensors already in memory."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

from loratools.errors import MalformedFile, PathNotFound, ResourceError, UnsupportedFile
from loratools.tensors.dtypes import BY_TORCH
from loratools.tensors.lazy import LazyTensor


class TensorSource(Protocol):
    """Named lazy tensors and their metadata, wherever they lie."""

    @property
    def name(self) -> str:
        """How messages name it."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata as stored."""
        ...

    @property
    def files(self) -> tuple[LocalFile, ...]:
        """The local files behind it, for the writer to guard and to check; empty for memory and remote files."""
        ...

    def keys(self) -> Sequence[str]:
        """The keys in the order of the file."""
        ...

    def __iter__(self) -> Iterator[str]:
        """The keys in the order of the file."""
        ...

    def __getitem__(self, key: str) -> LazyTensor:
        """The tensor of that name; raises KeyError."""
        ...

    def __len__(self) -> int:
        """The number of tensors."""
        ...


class Identity(NamedTuple):
    """What tells whether a file is still the one that was opened."""

    device: int
    inode: int
    size: int
    mtime_ns: int


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class LocalFile:
    """A ByteSource over one regular file, opened at the first need, read with pread, safe to share between threads.

    Nothing is mapped: a mapped file that shrinks kills the process, a pread raises ResourceError.
    """

    def __init__(self, path: str | os.PathLike[str], *, follow_links: bool = True) -> None:
        """Opens nothing yet; with `follow_links` False a symbolic link at `path` is refused."""
        self.path = os.fspath(path)
        self.name = self.path
        self._flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
        self._descriptor: int | None = None
        self._identity: Identity | None = None
        self._lock = threading.Lock()

    @classmethod
    def of_descriptor(cls, descriptor: int, name: str) -> LocalFile:
        """A file that is open already (it may have no name any more); the descriptor now belongs to the result."""
        file = cls(name)
        file._descriptor, file._identity = descriptor, _identity(_status(descriptor, name))
        return file

    def __repr__(self) -> str:
        return f"LocalFile({self.path!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def identity(self) -> Identity:
        """Device, inode, size and time of last change, as they were when the file was first opened."""
        self.fileno()
        assert self._identity is not None
        return self._identity

    @property
    def size(self) -> int:
        """The size in bytes, when first opened."""
        return self.identity.size

    def fileno(self) -> int:
        """The open descriptor; raises PathNotFound, MalformedFile (no regular file) or ResourceError (permission)."""
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    self._descriptor = self._open()
        return self._descriptor

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, self._flags)
        except OSError as error:
            raise opening_failed(error, self.path) from error
        except ValueError as error:
            raise PathNotFound("the path holds a NUL character", path=ascii(self.path)) from error
        found = _status(descriptor, self.path)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            kind = next((word for test, word in _KINDS if test(found.st_mode)), "no regular file")
            raise MalformedFile(f"a file is needed, this is {kind}", path=self.path)
        if self._identity is None:
            self._identity = _identity(found)
        elif self._identity != _identity(found):
            os.close(descriptor)
            raise self._changed()
        return descriptor

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; raises ResourceError when the file became shorter or cannot be read."""
        descriptor = self.fileno()
        try:
            data = os.pread(descriptor, length, offset)
            while len(data) < length:
                more = os.pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    raise self._changed()
                data += more
        except OSError as error:
            raise ResourceError(f"reading failed: {error.strerror}", path=self.path) from error
        return data

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on, without memory of its own; raises as `read` does."""
        descriptor, done = self.fileno(), 0
        try:
            while done < len(room):
                count = os.preadv(descriptor, [room[done:]], offset + done)
                if not count:
                    raise self._changed()
                done += count
        except OSError as error:
            raise ResourceError(f"reading failed: {error.strerror}", path=self.path) from error

    def check_unchanged(self) -> None:
        """Raises ResourceError when the file is not the one, or not as long or old as, it was when first opened."""
        if self._identity is None:
            return
        try:
            found = Path(self.path).stat() if self._descriptor is None else os.fstat(self._descriptor)
        except OSError as error:
            raise self._changed() from error
        if _identity(found) != self._identity:
            raise self._changed()

    def _changed(self) -> ResourceError:
        return ResourceError(
            "input changed while reading", path=self.path, hint="wait until the other program has finished with it"
        )

    def close(self) -> None:
        """Lets the descriptor go; a later read opens the file again, and insists that it is the same."""
        descriptor, self._descriptor = getattr(self, "_descriptor", None), None
        if descriptor is not None:
            os.close(descriptor)


def _status(descriptor: int, path: str) -> os.stat_result:
    """What the system says of an open file; raises ResourceError, and closes it, where that fails."""
    try:
        return os.fstat(descriptor)
    except OSError as error:
        with suppress(OSError):  # a descriptor that cannot be asked about may be no descriptor any more
            os.close(descriptor)
        raise ResourceError(f"cannot be read: {error.strerror}", path=path) from error


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def opening_failed(error: OSError, path: object) -> Exception:
    """Our exception for an OSError of opening `path` for reading."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return PathNotFound("no such file", path=path)
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG):
        return MalformedFile(f"cannot be opened as a file: {error.strerror}", path=path)
    return ResourceError(f"cannot be opened: {error.strerror}", path=path)


class FileObjectBytes:
    """A ByteSource over a binary file object that can seek; `name` for messages."""

    def __init__(self, file: BinaryIO, name: str | None = None) -> None:
        self._file, self._lock = file, threading.Lock()
        self.name = name or str(getattr(file, "name", "<file object>"))
        self.size = file.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; raises ResourceError when there are fewer."""
        with self._lock:
            parts: list[bytes] = []
            missing = length
            while missing:
                try:
                    self._file.seek(offset + length - missing)
                    part = self._file.read(missing)
                except OSError as error:
                    raise ResourceError(f"reading failed: {error.strerror or error}", path=self.name) from error
                if not part:
                    raise ResourceError("input changed while reading", path=self.name)
                parts.append(part)
                missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fileno(self) -> None:
        """None: its own position and buffer make the descriptor, if there is one, unsafe to share."""


class MemoryTensors:
    """A TensorSource over tensors in memory: LazyTensor, torch tensors, or NumPy arrays."""

    def __init__(
        self, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, *, name: str = "<memory>"
    ) -> None:
        """Takes the mapping as it is now; bytes are taken from it when asked for."""
        self.name = name
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.files: tuple[LocalFile, ...] = ()
        self._tensors = {key: lazy_tensor(value) for key, value in tensors.items()}

    def keys(self) -> Sequence[str]:
        """The keys in the mapping's order."""
        return tuple(self._tensors)

    def __getitem__(self, key: str) -> LazyTensor:
        return self._tensors[key]

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)


def lazy_tensor(value: Any) -> LazyTensor:
    """A LazyTensor, torch tensor or NumPy array as a LazyTensor; raises UnsupportedFile for anything else."""
    if isinstance(value, LazyTensor):
        return value
    if hasattr(value, "detach") and hasattr(value, "dtype"):
        return LazyTensor.from_torch(value)
    if hasattr(value, "__array_interface__") and hasattr(value, "dtype"):
        return _from_array(value)
    raise UnsupportedFile(f"a {type(value).__name__} is no tensor")


def _from_array(array: Any) -> LazyTensor:
    dtype = BY_TORCH.get(array.dtype.name)
    if dtype is None:
        raise UnsupportedFile(f"NumPy dtype {array.dtype.name} has no safetensors form")

    def produce() -> bytes:
        little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
        return bytes(little.tobytes())

    return LazyTensor.produced(dtype, array.shape, produce)
