"""Format: a named dialect for writing. It fixes prefix, naming, suffix family and alpha policy; reading needs none."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple

from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.llm_namings import LanguageNaming
from loratools.model import Container, Spelling

BUNDLE = "bundle_emb."
"""How the keys of embeddings begin that travel inside an adapter file (A1111's bundles)."""

WHOLE = "base_model.model."
"""How the keys of modules begin that PEFT saves whole beside an adapter, and those of the adapter itself."""

PEFT_WEIGHTS = "adapter_model.safetensors"
"""What PEFT calls the file in an adapter's folder."""

NUMBERED = "weights.0.lora_up"
"""The key by which a file is known that numbers the layers of Stable Cascade."""

EMBEDDING = "<embed>"
"""What the metadata say of a token's embedding, which a file of cloneofsimo's may hold beside its layers."""

ClipPrefix = Literal["text_model", "none"]


class Options(NamedTuple):
    """What a caller may choose about a format. `clip_prefix` is for readers whose CLIP classes have another level;
    `names` is the naming of a language model's layers, the source's own where it is None.
    """

    clip_prefix: ClipPrefix | None = None
    names: LanguageNaming | None = None


class Format(NamedTuple):
    """A row of the registry: what it is called, who reads it, where alpha goes, and how it spells a component.

    `spell` takes None for the generic transformer, and answers None for what the format cannot name; `extras` are the
    beginnings of the keys that its files may hold beside adapters; `strict` says that its reader wants factors of the
    very dimensions that the weight has, which formats with a configuration always do; `absent` is the alpha that a
    layer without one has, its rank where that is None; `weights` is the file's name in a folder; `recorded` says that
    it is no format but how one file was spelt; `quiet` leaves out an alpha that makes a scale of 1; `container` is what
    its tensors stand in.
    """

    id: str
    title: str
    readers: tuple[str, ...]
    alpha: Literal["tensor", "metadata", "config"]
    kinds: tuple[str, ...]
    spell: Callable[[Architecture | None, Component | None, Options], Spelling | None]
    folder: bool = False
    extras: tuple[str, ...] = ()
    strict: bool = False
    absent: Fraction | None = None
    weights: str = PEFT_WEIGHTS
    recorded: bool = False
    quiet: bool = False
    container: Container = "safetensors"
