"""Every format that can be written, by id."""

from __future__ import annotations

from loratools.errors import UsageError, nearest
from loratools.formats.comfy import COMFY
from loratools.formats.diffusers import DIFFUSERS
from loratools.formats.format import Format
from loratools.formats.gguf import GGUF
from loratools.formats.hcp import HCP
from loratools.formats.kohya import KOHYA
from loratools.formats.mlx import MLX
from loratools.formats.peft import PEFT

FORMATS: tuple[Format, ...] = (COMFY, DIFFUSERS, GGUF, HCP, KOHYA, MLX, PEFT)
ORIGINAL = "original"


def format_of(name: str) -> Format:
    """The format of that id; UsageError with the nearest one where there is none."""
    found = next((row for row in FORMATS if row.id == name), None)
    if found is None:
        known = [row.id for row in FORMATS] + [ORIGINAL]
        raise UsageError(f"unknown format {name!r}", hint=nearest(name, known) or f"known formats: {', '.join(known)}")
    return found
