"""Stability AI's Control-LoRA: a ControlNet whose weights are those of the model and a pair of factors for each layer.

`input_blocks.4.1.proj_in.up` · `.down` are added to a copy of the model's own weight, which then is the ControlNet's;
norms, biases, `zero_convs`, `input_hint_block` and `middle_block_out` stand there whole. No alpha: the scale is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

MARK = "lora_controlnet"
"""The key, of a tensor without elements, by which such a file is known."""

FORMAT = "control-lora"
WHY = "a Control-LoRA: a ControlNet, whose factors change a copy of the model and never the model itself"
HINT = "load it as a ControlNet (ComfyUI, Forge); a LoRA for the model itself is another file"

_UP, _DOWN, _WEIGHT = ".up", ".down", ".weight"

Shape = tuple[int, ...]


def weights_of(sizes: Mapping[str, Shape | None]) -> dict[str, Shape | None]:
    """The keys and shapes of the ControlNet that a file makes: a pair of factors is a weight [out, in, kernel…]."""
    found: dict[str, Shape | None] = {}
    for key, size in sizes.items():
        stem = key.removesuffix(_UP)
        inner = sizes.get(f"{stem}{_DOWN}") if stem != key else None
        if inner is not None and size:
            found[f"{stem}{_WEIGHT}"] = (size[0], *inner[1:])
        elif key != MARK and not key.endswith((_UP, _DOWN)):
            found[key] = size
    return found
