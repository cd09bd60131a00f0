"""What a stretch of work takes: seconds, and the peak of memory on the device that it runs on."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Spent:
    """Seconds, and bytes at the peak: allocated by torch on CUDA, resident of the whole process elsewhere."""

    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def measured(device: str) -> Iterator[Spent]:
    """Measure the block; the figures are there once it has ended."""
    import torch

    spent = Spent()
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # a kernel without it gives the peak since the start
            _RESET.write_text("5", encoding="ascii")
    started = time.perf_counter()
    try:
        yield spent
    finally:
        if on_cuda:
            torch.cuda.synchronize(device)
        spent.seconds = time.perf_counter() - started
        spent.peak_bytes = torch.cuda.max_memory_allocated(device) if on_cuda else _resident()


def _resident() -> int:
    """The peak of resident memory since it was last reset, in bytes."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
