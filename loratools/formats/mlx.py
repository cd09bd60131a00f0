"""MLX: `model.layers.0.….lora_a` [in, r] and `lora_b` [r, out] beside an adapter_config.json that states one scale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.llm import PREFIX
from loratools.errors import NotRepresentable
from loratools.formats.configs import Config
from loratools.formats.format import Format, Options
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling

_BLOCK = re.compile(r"^.*?\blayers\.\d+\.")


def _spell(architecture: Architecture | None, component: Component | None, _: Options) -> Spelling | None:
    """Language models alone, under their own names."""
    if architecture is None or component is None:
        return Spelling("", "", False, WRITTEN["mlx"])
    if not architecture.id.startswith(PREFIX):
        return None
    return Spelling("", component.namings[0].name, False, WRITTEN["mlx"])


def config(members: Sequence[Adapter], native: Callable[[Adapter], str], source: Config) -> Mapping[str, Any]:
    """adapter_config.json: one scale and one rank for all layers, and the layers' names inside their blocks.

    Raises NotRepresentable where scales or ranks differ: mlx-lm loads no factors of another rank than it states.
    """
    scale, ranks = members[0].scale, sorted({item.rank or 0 for item in members})
    other = next((item for item in members if item.scale != scale), None)
    if other is not None:
        raise _refusal(other, "states one scale, and this has others", "--alpha fold multiplies them into the factors")
    if len(ranks) > 1:
        other = next(item for item in members if item.rank == ranks[-1])
        several = ", ".join(map(str, ranks))
        raise _refusal(other, f"states one rank, and this has {several}", "--to peft holds a rank for each layer")
    found: dict[str, Any] = {
        "fine_tune_type": "dora" if any("magnitude" in item.factors for item in members) else "lora",
        "lora_parameters": {
            "dropout": 0.0,
            "keys": sorted({_BLOCK.sub("", native(item)) for item in members}),
            "rank": ranks[0],
            "scale": float(scale),
        },
        "num_layers": -1,  # all; what a file does not hold changes nothing
    }
    model = source.get("base_model_name_or_path") or source.get("model")
    return {**found, "model": model} if model else found


def _refusal(item: Adapter, why: str, hint: str) -> NotRepresentable:
    origin = item.origin
    return NotRepresentable(
        f"{item.target.name}: mlx {why}",
        path=origin.file if origin else None,
        key=origin.stem if origin else None,
        hint=hint,
    )


MLX = Format(
    id="mlx",
    title="MLX: a folder for a language model, factors transposed, one scale in adapter_config.json",
    readers=("mlx-lm",),
    alpha="config",
    kinds=("lora",),
    spell=_spell,
    folder=True,
    weights="adapters.safetensors",
)
