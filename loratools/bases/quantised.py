"""8-bit weights with a scale beside them: `scale_weight` (ComfyUI's first), `weight_scale` (its later, and others')."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratools.bases.companions import companion
from loratools.errors import UnsupportedFile
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import TensorSource
from loratools.tensors.strict_json import strict_json

if TYPE_CHECKING:
    import torch

UNITS = ("scale_weight", "weight_scale")
"""What the scale of `….weight` is called in the place of `weight`: one number, or one for each row."""
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
_OF_BLOCKS = ("scale_inv", "weight_scale_2")
"""How the keys of scales end that are one for each block of a weight."""


def unit_key(source: TensorSource, key: str) -> str | None:
    """The key of the scale that stands beside a weight, or None."""
    stem, dot, leaf = key.rpartition(".")
    if leaf != "weight":
        return None
    keys = (f"{stem}{dot}{name}" for name in UNITS)
    return next((name for name in keys if name in source), None)


def refuse_packed(source: TensorSource) -> None:
    """Raise UnsupportedFile for a model whose weights are words of packed bits: `….qweight`, GPTQ's or Nunchaku's."""
    key = next((key for key in source if key.endswith(".qweight")), None)
    if key is not None:
        raise UnsupportedFile(
            "its weights are packed (qweight), and no change can be added to them",
            path=source.name,
            key=key,
            hint="give the model that it was quantised from, and quantise what comes out",
        )


def check_quantised(source: TensorSource) -> None:
    """Raise UnsupportedFile for weights whose stored numbers mean something that is not read here."""
    for key in source:
        leaf = key.rpartition(".")[2]
        if leaf == "comfy_quant":
            _check_described(source, key)
        if leaf.endswith(_OF_BLOCKS):
            why = "its weights are quantised in a way that is not read (a scale for each block)"
            raise UnsupportedFile(why, path=source.name, key=key, hint="give it in a plain dtype")
        if companion(key) != "quantisation" or leaf not in UNITS:
            continue
        weight = f"{key.rpartition('.')[0]}.weight"
        scale = source[key]
        held = source[weight] if weight in source else None  # noqa: SIM401 - a TensorSource has no get
        rows = held.shape[0] if held and held.shape else 0
        if held is None or held.dtype not in EIGHT_BITS or scale.numel not in (1, rows):
            found = f"{held.dtype} with a scale {list(scale.shape)}" if held else "a scale without a weight"
            why = f"its weights are quantised in a way that is not read ({found})"
            hint = "8-bit floats with one scale, or one for each row, are; or give it in a plain dtype"
            raise UnsupportedFile(why, path=source.name, key=key, hint=hint)


def _check_described(source: TensorSource, key: str) -> None:
    """ComfyUI describes a layer's form in JSON, in a tensor of bytes."""
    told = strict_json(source[key].tobytes(), path=source.name, what=key)
    form = str(told.get("format")) if isinstance(told, dict) else "?"
    if not form.startswith("float8"):
        why = f"its weights are quantised in a way that is not read ({form})"
        raise UnsupportedFile(why, path=source.name, key=key, hint="give it in a plain dtype")


def dequantised(tensor: LazyTensor, unit: LazyTensor | None) -> LazyTensor:
    """The numbers that a weight stands for, in float32 where a scale multiplies them."""
    if unit is None:
        return tensor

    def produce() -> torch.Tensor:
        scale = unit.load().float().reshape(-1, *(1,) * (len(tensor.shape) - 1))
        return tensor.load().float() * scale

    return LazyTensor.computed("F32", tensor.shape, produce)
