"""Block weights as web UIs write them: a list of 12, 17, 20, 26 or 61 numbers, one for each block of the denoiser.

The first of an SD list is for everything outside the blocks, the text encoders among it. 17 and 12 leave the blocks out
that have no attention, where LoRA of attention layers alone has nothing; those keep the first number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loratools.architectures.architecture import Architecture
from loratools.errors import UsageError


def _numbered(word: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{word}{number:02}" for number in numbers)


@dataclass(frozen=True, slots=True)
class BlockList:
    """One way to list blocks: the architectures it is for, and what each number stands for, in order."""

    architectures: tuple[str, ...]
    blocks: tuple[str, ...]


LISTS: tuple[BlockList, ...] = (
    BlockList(("sdxl",), ("BASE", *_numbered("IN", 4, 5, 7, 8), "M00", *_numbered("OUT", *range(6)))),
    BlockList(("sd1", "sd2"), ("BASE", *_numbered("IN", 1, 2, 4, 5, 7, 8), "M00", *_numbered("OUT", *range(3, 12)))),
    BlockList(("sdxl",), ("BASE", *_numbered("IN", *range(9)), "M00", *_numbered("OUT", *range(9)))),
    BlockList(("sd1", "sd2"), ("BASE", *_numbered("IN", *range(12)), "M00", *_numbered("OUT", *range(12)))),
    BlockList(("flux1",), ("CLIP", "T5", "IN", *_numbered("D", *range(19)), *_numbered("S", *range(38)), "OUT")),
)

# What a native path of the denoiser's original naming belongs to; the first pattern that fits.
_SD = (("input_blocks", "IN"), ("output_blocks", "OUT"))
_FLUX = (("double_blocks", "D"), ("single_blocks", "S"))


def block_weights(numbers: Sequence[float], architecture: Architecture | None) -> Mapping[str, float]:
    """block → weight; raises UsageError where no list for this architecture has so many numbers."""
    known = [item for item in LISTS if architecture and architecture.id in item.architectures]
    found = next((item for item in known if len(item.blocks) == len(numbers)), None)
    if found is None:
        name = architecture.id if architecture else "this model"
        lengths = " or ".join(str(len(item.blocks)) for item in known)
        hint = f"give {lengths} numbers" if lengths else "give PATTERN=W"
        raise UsageError(f"{len(numbers)} block weights are no list for {name}", hint=hint)
    return dict(zip(found.blocks, numbers, strict=True))


def block_of(architecture: Architecture, component: str, path: str) -> str:
    """The block of a canonical path: IN00 … OUT11, M00 or BASE of a U-Net; D00, S00, IN, OUT, CLIP or T5 of Flux."""
    flux = architecture.id == "flux1"
    if component != architecture.denoiser.name:
        return {"text_encoder": "CLIP", "text_encoder_2": "T5"}.get(component, "BASE") if flux else "BASE"
    native = _native(architecture, path)
    for word, short in _FLUX if flux else _SD:
        match = re.match(rf"{word}[._](\d+)[._]", native)
        if match:
            return f"{short}{int(match[1]):02}"
    if flux:
        return "OUT" if native.startswith("final_layer") else "IN"
    return "M00" if native.startswith("middle_block") else "BASE"


def _native(architecture: Architecture, path: str) -> str:
    """The path in the original naming, which the lists speak of."""
    namings = {naming.name: naming for naming in architecture.denoiser.namings}
    naming = namings.get("ldm") or namings.get("bfl")
    placement = naming.at_canonical(path) if naming else None
    return placement.native if placement else path
