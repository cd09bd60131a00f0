"""Every architecture that has a table, by id, and one index over all their namings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

from loratools.architectures.ace_step import ACE_STEP
from loratools.architectures.animatediff import ANIMATEDIFF
from loratools.architectures.architecture import Architecture
from loratools.architectures.auraflow import AURAFLOW
from loratools.architectures.bria import BRIA_FIBO, BRIA_FIBO2
from loratools.architectures.chroma import CHROMA
from loratools.architectures.cogvideox import COGVIDEOX
from loratools.architectures.cogview4 import COGVIEW4
from loratools.architectures.cosmos import ANIMA, COSMOS
from loratools.architectures.ernie_image import ERNIE_IMAGE
from loratools.architectures.flux1 import FLUX1
from loratools.architectures.flux2 import FLUX2
from loratools.architectures.flux3 import FLUX3
from loratools.architectures.helios import HELIOS
from loratools.architectures.hidream import HIDREAM
from loratools.architectures.hunyuan_dit import HUNYUAN_DIT
from loratools.architectures.hunyuan_image import HUNYUAN_IMAGE
from loratools.architectures.hunyuan_video import FRAMEPACK, HUNYUAN_VIDEO
from loratools.architectures.hunyuan_video15 import HUNYUAN_VIDEO15
from loratools.architectures.ideogram4 import IDEOGRAM4
from loratools.architectures.kandinsky5 import KANDINSKY5
from loratools.architectures.kandinsky22 import KANDINSKY22
from loratools.architectures.krea2 import KREA2
from loratools.architectures.latte import LATTE
from loratools.architectures.llm import PREFIX, llm_architecture
from loratools.architectures.longcat_image import LONGCAT_IMAGE
from loratools.architectures.ltx2 import LTX2
from loratools.architectures.ltx_video import LTX_VIDEO
from loratools.architectures.lumina2 import LUMINA2
from loratools.architectures.minimax_h3 import MINIMAX_H3
from loratools.architectures.mochi import MOCHI
from loratools.architectures.naming import Skeleton, words_of
from loratools.architectures.omnigen import OMNIGEN
from loratools.architectures.pixart import PIXART
from loratools.architectures.qwen_image import QWEN_IMAGE
from loratools.architectures.qwen_image21 import QWEN_IMAGE21
from loratools.architectures.sana import SANA
from loratools.architectures.sana_video import SANA_VIDEO
from loratools.architectures.sd1 import SD1
from loratools.architectures.sd2 import SD2
from loratools.architectures.sd3 import SD3
from loratools.architectures.sdxl import SDXL
from loratools.architectures.sdxl_refiner import SDXL_REFINER
from loratools.architectures.skyreels import SKYREELS_V2
from loratools.architectures.stable_cascade import STABLE_CASCADE
from loratools.architectures.wan import WAN21, WAN22
from loratools.architectures.wuerstchen import WUERSTCHEN
from loratools.architectures.z_image import Z_IMAGE
from loratools.errors import UsageError, nearest

ARCHITECTURES: tuple[Architecture, ...] = (
    ACE_STEP,
    ANIMA,
    ANIMATEDIFF,
    AURAFLOW,
    BRIA_FIBO,
    BRIA_FIBO2,
    CHROMA,
    COGVIDEOX,
    COGVIEW4,
    COSMOS,
    ERNIE_IMAGE,
    FLUX1,
    FLUX2,
    FLUX3,
    FRAMEPACK,
    HELIOS,
    HIDREAM,
    HUNYUAN_DIT,
    HUNYUAN_IMAGE,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO15,
    IDEOGRAM4,
    KANDINSKY22,
    KANDINSKY5,
    KREA2,
    LATTE,
    LONGCAT_IMAGE,
    LTX_VIDEO,
    LTX2,
    LUMINA2,
    MINIMAX_H3,
    MOCHI,
    OMNIGEN,
    PIXART,
    QWEN_IMAGE,
    QWEN_IMAGE21,
    SANA,
    SANA_VIDEO,
    SD1,
    SD2,
    SD3,
    SDXL,
    SDXL_REFINER,
    SKYREELS_V2,
    STABLE_CASCADE,
    WAN21,
    WAN22,
    WUERSTCHEN,
    Z_IMAGE,
)


Item = TypeVar("Item")


_BY_ID = {known.id: known for known in ARCHITECTURES}


class Spelt(NamedTuple):
    """One naming of one component of one architecture, by names."""

    architecture: str
    component: str
    naming: str


def architecture(name: str) -> Architecture:
    """The architecture of that id (`llm-*` are made on demand); UsageError with the nearest where there is none."""
    if name in _BY_ID:
        return _BY_ID[name]
    model = llm_architecture(name) if name.startswith(PREFIX) else None
    if model:
        return model
    ids = [known.id for known in ARCHITECTURES]
    raise UsageError(
        f"unknown architecture {name!r}", hint=nearest(name, ids) or f"known architectures: {', '.join(ids)}", known=ids
    )


def without_heirs(known: Sequence[Architecture], items: Sequence[Item], claims: Sequence[str] = ()) -> list[Item]:
    """The items whose architecture yields to no other's, or is claimed by name; the two sequences go in step."""
    ids = {found.id for found in known}
    return [
        item
        for found, item in zip(known, items, strict=True)
        if found.id in claims or not ids.intersection(found.yields_to)
    ]


def namings_of(words: Skeleton) -> tuple[Spelt, ...]:
    """Every naming with a path of that skeleton; whether the numbers fit is the naming's to say."""
    return _index(words[0]).get(words, ()) if words else ()


@cache
def _index(word: str) -> dict[Skeleton, tuple[Spelt, ...]]:
    """skeleton → namings, for the skeletons that begin with that word: a file knows few of all there are."""
    found: dict[Skeleton, list[Spelt]] = {}
    for spelt, paths in _by_first_word().get(word, {}).items():
        for words in {words_of(path) for path in paths}:
            found.setdefault(words, []).append(spelt)
    return {words: tuple(namings) for words, namings in found.items()}


@cache
def _by_first_word() -> dict[str, dict[Spelt, Collection[str]]]:
    """First word of a path → naming → its native paths that begin so."""
    found: dict[str, dict[Spelt, Collection[str]]] = {}
    for known in ARCHITECTURES:
        for component in known.components:
            for naming in (*component.namings, *component.adapters):
                spelt = Spelt(known.id, component.name, naming.name)
                for word, paths in naming.by_first_word.items():
                    found.setdefault(word, {})[spelt] = paths
    return found
