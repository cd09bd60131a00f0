"""The bits of a weight from before anything was added to it: in memory, or on a shelf, a file without a name."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from loratools.errors import ResourceError
from loratools.tensors.dtypes import BY_TORCH
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


class Original(Protocol):
    """The bits of a weight from before anything was added to it, in row-major order."""

    @property
    def dtype(self) -> str:
        """The dtype, by safetensors' name."""
        ...

    def tensor(self) -> torch.Tensor:
        """The values, contiguous, on the CPU; not to be changed."""
        ...

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """An original that is held as a tensor on the CPU."""

    held: torch.Tensor

    @property
    def dtype(self) -> str:
        """The dtype, by safetensors' name."""
        return BY_TORCH[str(self.held.dtype).removeprefix("torch.")]

    def tensor(self) -> torch.Tensor:
        """The tensor."""
        return self.held

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on."""
        room[:] = _octets(self.held)[offset : offset + len(room)]


class Shelf:
    """A temporary file without a name, which is gone with the process; originals are put into it one after another."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="loratools-")  # noqa: SIM115 - it lives as long as its originals
        self._end = 0

    def __del__(self) -> None:
        self._file.close()

    def put(self, values: torch.Tensor) -> OnFile:
        """Write a contiguous tensor of the CPU; raises ResourceError."""
        data = _octets(values)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done : done + (1 << 26)], self._end + done)
        except OSError as error:
            where = tempfile.gettempdir()
            raise ResourceError(
                f"the original weights cannot be kept in a file: {error.strerror}", path=where, hint="TMPDIR=… keep=cpu"
            ) from error
        found = OnFile(self, self._end, InMemory(values).dtype, tuple(values.shape))
        self._end += len(data)
        return found

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on; raises ResourceError."""
        done = 0
        while done < len(room):
            count = os.preadv(self._file.fileno(), [room[done:]], offset + done)
            if not count:
                raise ResourceError("the file of the original weights has become shorter")
            done += count


@dataclass(frozen=True, eq=False)
class OnFile:
    """An original that lies in a shelf."""

    shelf: Shelf
    at: int
    dtype: str
    shape: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """The values, read."""
        lazy = LazyTensor(self.dtype, self.shape, ())
        data = bytearray(lazy.nbytes)
        self.read_into(0, memoryview(data))
        return LazyTensor.from_bytes(self.dtype, self.shape, bytes(data)).load()

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on."""
        self.shelf.read_into(self.at + offset, room)


def fingerprint(values: torch.Tensor) -> int:
    """A sum over the bits, the same on every device: enough to see that somebody wrote there."""
    import torch

    flat = values.detach().contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()  # eight bytes are read at a time
    octets = flat.view(torch.uint8)
    whole = len(octets) // 8 * 8
    return int(octets[:whole].view(torch.int64).sum()) + int(octets[whole:].sum())


def _octets(values: torch.Tensor) -> memoryview:
    import torch

    data: Any = values.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)
