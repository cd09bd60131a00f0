"""Adapters whose names pass through, as no table is needed to name a language model's layers: PEFT's, MLX', GGUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from loratools.formats.collect import Group
from loratools.formats.detect import Stem
from loratools.formats.opening import Opened
from loratools.tensors.gguf_check import ARCHITECTURE

_BARE = ("gguf", "mlx")


class Passing(NamedTuple):
    """The style of prefix that such keys have, the canonical path of a native one, the model type that is stated."""

    style: str = "peft"
    path: Callable[[str], str] = str
    model_type: str = ""


PEFT_PASSES = Passing()


def passing_of(groups: Mapping[Stem, Group], opened: Opened) -> Passing:
    """How the names of a file pass through: bare ones only where every factor is of a family that leaves them bare."""
    families = {item.cut.row.family for group in groups.values() for item in group.found.values()}
    if len(families) != 1 or not families <= set(_BARE):
        return PEFT_PASSES
    if families == {"gguf"}:
        from loratools.formats.gguf_names import RENAMED, path_in  # an optional library knows them

        stated = opened.parts[0].source.metadata.get(ARCHITECTURE, "")
        return Passing("bare", path_in(stated), RENAMED.get(stated, ""))
    return Passing("bare")
