"""A pipeline as diffusers loads it, again and again: read from its folder once, and copied for everyone who asks."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any


def fresh(folder: Path) -> Any:
    """A pipeline of its own for the caller to change, as `from_pretrained` makes it of the folder as it is now."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return copy.deepcopy(_loaded(folder, tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in found)))


@lru_cache(maxsize=6)
def _loaded(folder: Path, _files: tuple[tuple[Path, int, int], ...]) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, local_files_only=True)
