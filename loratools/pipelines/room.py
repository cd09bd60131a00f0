"""How much memory is free where a pipeline is to run."""

from __future__ import annotations

import os
from pathlib import Path


def bytes_free(device: str) -> int:
    """Bytes that can still be had: of the CUDA device, else of the machine's memory."""
    import torch

    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
