"""The beginnings of keys: which components of an architecture a prefix can mean, and how much of the key it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.registry import ARCHITECTURES
from loratools.architectures.text_encoders import COMFY_WORDS, comfy_word
from loratools.formats.hcp_words import DENOISER, HCP, hcp_words


class Prefix(NamedTuple):
    """A prefix as found. `style` names the convention; `word` is what it says about the component ("" says nothing)."""

    text: str
    style: str
    word: str = ""

    def means(self, architecture: Architecture, component: Component, naming: str = "") -> bool:
        """Whether this prefix can stand for that component, under that naming of it."""
        if naming and naming == component.inside:
            component = architecture.denoiser
        if self.style == "kohya":
            return self.word in component.short or (self.word == TRANSFORMER and component is architecture.denoiser)
        if self.style == "component":
            return self.word == component.name
        if self.style == "comfy":
            return component is architecture.denoiser
        if self.style == "comfy-text":
            return self.word == comfy_word(component.namings)
        if self.style == "hcp" and self.word:
            if self.word == DENOISER:
                return component is architecture.denoiser
            return self.word in hcp_words(architecture, component)
        return True


TRANSFORMER = "transformer"
"""OneTrainer's word for whatever removes the noise."""

# style → how its prefix begins; `kohya` takes a short component word, `component` the component's own name.
# The last is Ideogram 4's, which has a second transformer for the other half of its guidance.
_COMFY = ("diffusion_model.", "model.diffusion_model.", "conditional_transformer.")
_PEFT = "base_model.model."
_LYCORIS = "lycoris_"
_COMFY_TEXT = re.compile(rf"text_encoders\.({'|'.join(word for _, word in COMFY_WORDS)})\.transformer\.")
_WRAPPED = "module."  # torch's DataParallel puts it before every name


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The prefixes that are made of words from the architecture tables, longest words first."""
    shorts = {word for arch in ARCHITECTURES for component in arch.components for word in component.short}
    names = {component.name for arch in ARCHITECTURES for component in arch.components}

    def any_of(words: set[str]) -> str:
        return "|".join(sorted(map(re.escape, words), key=len, reverse=True))

    return re.compile(rf"lora_({any_of(shorts)})[_.]"), re.compile(rf"({any_of(names)})\.")


def prefixes(stem: str) -> Iterator[tuple[Prefix, str]]:
    """Every way to cut a prefix from a stem, the most telling first; the last is no prefix at all."""
    short, name = _patterns()
    found = short.match(stem)
    if found:
        yield Prefix(found[0], "kohya", found[1]), stem[found.end() :]
    found = name.match(stem)
    if found:
        rest = stem[found.end() :]
        if rest.startswith(_PEFT):
            yield Prefix(found[0] + _PEFT, "component", found[1]), rest[len(_PEFT) :]
        yield Prefix(found[0], "component", found[1]), rest
    for text in _COMFY:
        if stem.startswith(text):
            yield Prefix(text, "comfy"), stem[len(text) :]
    found = _COMFY_TEXT.match(stem)
    if found:
        yield Prefix(found[0], "comfy-text", found[1]), stem[found.end() :]
    if stem.startswith(_PEFT):
        yield Prefix(_PEFT, "peft"), stem[len(_PEFT) :]
    if stem.startswith(_LYCORIS):
        yield Prefix(_LYCORIS, "lycoris"), stem[len(_LYCORIS) :]
    found = HCP.match(stem)
    if found:
        yield Prefix(found[0], "hcp", found[1] or found[2] or ""), stem[found.end() :]
    if stem.startswith(_WRAPPED):
        yield Prefix(_WRAPPED, "bare"), stem[len(_WRAPPED) :]
    yield Prefix("", "bare"), stem
