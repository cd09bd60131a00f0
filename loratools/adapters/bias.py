"""The two biases that can stand beside a LoRA's factors: PEFT's is multiplied by the scale, kohya's is not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from loratools.adapters.adapter import Adapter
from loratools.adapters.lora import LORA
from loratools.model import Scale

SCALED, STORED = "up_bias", "bias_diff"
"""The role of PEFT's `lora_B.bias`, and that of kohya's `diff_b`."""

_ONE = Scale(Fraction(1))


def with_bias_as(item: Adapter, role: str) -> Adapter:
    """The adapter with its one bias under the other role, where the scale is 1 and both mean the same; else itself."""
    other = STORED if role == SCALED else SCALED
    if item.kind != LORA.name or other not in item.factors or role in item.factors or not item.scale.equals(_ONE):
        return item
    return replace(item, factors={role if name == other else name: found for name, found in item.factors.items()})
