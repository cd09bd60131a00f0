"""Keys that say something only beside others: a vector, a magnitude, the norms that a file of factors replaces.

Alone they are what any model has: `attn.norm_q.weight` in a base model is a norm, beside factors it is a new one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from loratools.formats.suffixes import IA3_VECTOR, MLX_MAGNITUDE, Cut, Suffix


class Companion(NamedTuple):
    """A row that is read where its layer has a factor of the `role`, of the `family` where one is named."""

    row: Suffix
    role: str
    family: str = ""


COMPANIONS = (
    Companion(IA3_VECTOR, "on_input"),
    Companion(MLX_MAGNITUDE, "down", MLX_MAGNITUDE.family),
)
# The norms of queries and keys, whole, that Flux' control adapters bring along: in their own names, and in diffusers'.
_NORMS = re.compile(r"(?P<stem>.*(?:query_norm|key_norm))(?P<ours>\.scale)|(?P<other>.*\.norm_(?:added_)?[qk])\.weight")
_REPLACED = {text: Suffix(text, "replacement", "norm", "bfl") for text in (".scale", ".weight")}


def companion(key: str, layer: Collection[Cut]) -> Cut | None:
    """The key cut before a companion's suffix, where its layer (the cuts of its other keys) has what that needs."""
    stem, dot, leaf = key.rpartition(".")
    for row, role, family in COMPANIONS:
        if row.text == dot + leaf and any(cut.row.role == role and family in ("", cut.row.family) for cut in layer):
            return Cut(stem, row.text, row)
    return None


def replaced_norm(key: str) -> Cut | None:
    """The key of a norm's weight cut before its last word, for a file that has factors beside it."""
    found = _NORMS.fullmatch(key)
    if found is None:
        return None
    text = found["ours"] or ".weight"
    return Cut(found["stem"] or found["other"], text, _REPLACED[text])
