"""GGUF: llama.cpp's names in one file, one alpha for all layers; for models whose rows it leaves in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.architectures.architecture import Architecture, Component
from loratools.errors import NotRepresentable
from loratools.formats.alpha_tensor import is_plain, plain
from loratools.formats.format import Format, Options
from loratools.formats.gguf_names import GgufNaming
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling
from loratools.tensors.dtypes import encode_scalar
from loratools.tensors.gguf_check import ALPHA, ARCHITECTURE, DTYPES

if TYPE_CHECKING:
    from loratools.formats.spell import Writer

# What says how the tensors of a file are stored: PEFT's word, and numbers about places and quantised ones.
_OF_ANOTHER_FILE = ("format", "general.alignment", "general.file_type", "general.quantization_version")
_FOLD = "--alpha fold multiplies the alphas into the factors"


def _spell(architecture: Architecture | None, _: Component | None, __: Options) -> Spelling | None:
    """Language models alone; which of llama.cpp's names they have hangs on the model."""
    return Spelling("", "", False, WRITTEN["gguf"]) if architecture is None else None


def header(
    members: Sequence[Adapter], by_component: Mapping[str, Writer], metadata: Mapping[str, str]
) -> dict[str, str]:
    """The header's values as text. The alpha is that of all layers, 0 where the scale of each is 1.

    llama.cpp multiplies by alpha / rank, the rank being each layer's own. Raises NotRepresentable where alphas differ,
    or no 32-bit float but 0 is the alpha, and for a dtype that llama.cpp does not multiply by.
    """
    for item in members:
        other = next((tensor.dtype for tensor in item.factors.values() if tensor.dtype not in DTYPES), None)
        if other is not None:
            why = f"multiplies by {', '.join(DTYPES)}, and this is {other}"
            raise _refusal(item, why, hint="--dtype float32, or float16")
    naming = by_component[members[0].target.component].naming
    architecture = naming.architecture if isinstance(naming, GgufNaming) else ""
    said = {key: text for key, text in metadata.items() if key not in _OF_ANOTHER_FILE}
    said |= {ARCHITECTURE: architecture, "general.type": "adapter", "adapter.type": "lora"}
    return {**said, ALPHA: _alpha(members)}


def _alpha(members: Sequence[Adapter]) -> str:
    if all(is_plain(item) for item in members):
        return "0"
    alphas = [Fraction(item.rank or 0) if item.alpha.value is None else plain(item).value for item in members]
    other = next((item for item, alpha in zip(members, alphas, strict=True) if alpha != alphas[0]), None)
    if other is not None:
        raise _refusal(other, "has one alpha for all layers, and this has another")
    alpha = alphas[0]
    if not alpha:
        raise _refusal(members[0], "takes an alpha of 0 for none, which is a scale of 1")
    if encode_scalar(alpha, "F32") is None:
        raise _refusal(members[0], "keeps alpha in 32 bits, which do not hold this one")
    return repr(float(alpha))


def _refusal(item: Adapter, why: str, hint: str = _FOLD) -> NotRepresentable:
    origin = item.origin
    return NotRepresentable(
        f"{item.target.name}: gguf {why}",
        path=origin.file if origin else None,
        key=origin.stem if origin else None,
        hint=hint,
    )


GGUF = Format(
    id="gguf",
    title="GGUF: one .gguf file for a language model under llama.cpp's names, one alpha in its header",
    readers=("llama.cpp",),
    alpha="config",
    kinds=("lora",),
    spell=_spell,
    container="gguf",
)
