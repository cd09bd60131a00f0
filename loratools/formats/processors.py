"""diffusers' first LoRAs of text encoders: a whole processor under each projection, of which one layer in four ran."""

from __future__ import annotations

import re
from collections.abc import Iterable

from loratools.architectures.attn_procs import TEXT_LEAVES
from loratools.formats.detect import Stem

NEVER_RUN = "never run"
_STEM = re.compile(r"(.*\.)(q_proj|k_proj|v_proj|out_proj)\.(to_(?:q|k|v|out)_lora)")
_OWN = dict(TEXT_LEAVES)


def never_run(stems: Iterable[Stem]) -> set[Stem]:
    """The stems of layers that no forward pass used: those of a whole set of four that are not their projection's own.

    The writer built all four under every projection and called the one that has the projection's name (diffusers 0.14
    and 0.15); a projection with fewer than four was written by something else, and nothing is said of it.
    """
    sets: dict[tuple[str | None, str, str], dict[str, Stem]] = {}
    for stem in stems:
        match = _STEM.fullmatch(stem[1])
        if match:
            sets.setdefault((stem[0], match[1], match[2]), {})[match[3]] = stem
    return {
        stem
        for (_, _, projection), members in sets.items()
        if len(members) == len(_OWN)
        for leaf, stem in members.items()
        if leaf != _OWN[projection]
    }
