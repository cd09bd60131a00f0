"""Format: a named dialect for writing. It fixes prefix, naming, suffix family and alpha policy; reading needs none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from loratools.architectures.architecture import Architecture, Component
from loratools.model import Spelling

BUNDLE = "bundle_emb."
"""How the keys of embeddings begin that travel inside an adapter file (A1111's bundles)."""

EMBEDDING = "<embed>"
"""What the metadata say of a token's embedding, which a file of cloneofsimo's may hold beside its layers."""

ClipPrefix = Literal["text_model", "none"]


class Options(NamedTuple):
    """What a caller may choose about a format. `clip_prefix` is for readers whose CLIP classes have another level."""

    clip_prefix: ClipPrefix | None = None


class Format(NamedTuple):
    """A row of the registry: what it is called, who reads it, where alpha goes, and how it spells a component.

    `spell` takes None for the generic transformer, and answers None for what the format cannot name; `extras` are the
    beginnings of the keys that its files may hold beside adapters; `strict` says that its reader wants factors of the
    very dimensions that the weight has, which formats with a configuration always do.
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
