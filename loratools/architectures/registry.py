"""Every architecture that has a table, by id, and one index over all their namings."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from loratools.architectures.animatediff import ANIMATEDIFF
from loratools.architectures.architecture import Architecture
from loratools.architectures.flux1 import FLUX1
from loratools.architectures.kandinsky22 import KANDINSKY22
from loratools.architectures.llm import PREFIX, llm_architecture
from loratools.architectures.naming import Skeleton, words_of
from loratools.architectures.sd1 import SD1
from loratools.architectures.sd2 import SD2
from loratools.architectures.sdxl import SDXL
from loratools.architectures.sdxl_refiner import SDXL_REFINER
from loratools.architectures.stable_cascade import STABLE_CASCADE
from loratools.architectures.wuerstchen import WUERSTCHEN
from loratools.errors import UsageError, nearest

ARCHITECTURES: tuple[Architecture, ...] = (
    ANIMATEDIFF,
    FLUX1,
    KANDINSKY22,
    SD1,
    SD2,
    SDXL,
    SDXL_REFINER,
    STABLE_CASCADE,
    WUERSTCHEN,
)


class Spelt(NamedTuple):
    """One naming of one component of one architecture, by names."""

    architecture: str
    component: str
    naming: str


def architecture(name: str) -> Architecture:
    """The architecture of that id (`llm-*` are made on demand); UsageError with the nearest where there is none."""
    for known in ARCHITECTURES:
        if known.id == name:
            return known
    model = llm_architecture(name) if name.startswith(PREFIX) else None
    if model:
        return model
    ids = [known.id for known in ARCHITECTURES]
    raise UsageError(
        f"unknown architecture {name!r}", hint=nearest(name, ids) or f"known architectures: {', '.join(ids)}", known=ids
    )


@lru_cache(maxsize=1)
def index() -> dict[Skeleton, tuple[Spelt, ...]]:
    """skeleton → every naming with a path of that skeleton; whether the numbers fit is the naming's to say."""
    found: dict[Skeleton, list[Spelt]] = {}
    for known in ARCHITECTURES:
        for component in known.components:
            for naming in (*component.namings, *component.adapters):
                spelt = Spelt(known.id, component.name, naming.name)
                for words in {words_of(rule.native) for rule in naming.rules}:
                    found.setdefault(words, []).append(spelt)
    return {words: tuple(namings) for words, namings in found.items()}
