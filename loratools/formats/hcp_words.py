"""HCP-Diffusion's words for the models inside its wrapper, and the beginnings of keys that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping

from loratools.architectures.architecture import Architecture, Component

DENOISER = "denoiser"
_BIG_G = ("TE.clip_bigG", "clip_bigG")
# architecture → component → its words, the one to write first: newer files say `TE.clip_L.`, older ones `clip_B.`
TEXT: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "flux1":        {"text_encoder": ("TE.clip",), "text_encoder_2": ("TE.T5",)},
    "sd1":          {"text_encoder": ("TE",)},
    "sd2":          {"text_encoder": ("TE",)},
    "sdxl":         {"text_encoder": ("TE.clip_L", "clip_L", "clip_B"), "text_encoder_2": _BIG_G},
    "sdxl-refiner": {"text_encoder_2": _BIG_G},
}  # fmt: skip
# What a file nests its tensors in (a colon in safetensors, a dictionary in a pickle), then the word.
_WORDS = sorted({word for table in TEXT.values() for words in table.values() for word in words}, key=len, reverse=True)
_WORD = rf"({DENOISER}|{'|'.join(map(re.escape, _WORDS))})\."
HCP = re.compile(rf"(?:lora|base|plugin)[:.](?:{_WORD})?|{_WORD}")


def hcp_words(architecture: Architecture, component: Component) -> tuple[str, ...]:
    """The words that stand for a component."""
    return TEXT.get(architecture.id, {}).get(component.name, ())
