"""What of a repository is the adapter in it, told by the names of its files, as a folder here would be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from loratools.errors import Unavailable
from loratools.formats.opening import CONFIG, PIPELINE, WEIGHTS
from loratools.hub.cards import CARD
from loratools.hub.references import HubReference

_SHOWN = 8


class Piece(NamedTuple):
    """One file of weights, the configuration beside it, and the component that its folder names."""

    weights: str
    config: str | None = None
    component: str | None = None


class Contents(NamedTuple):
    """The adapter of a repository; `card` where it has one. A pipeline is told by `is_pipeline`, and has no pieces."""

    pieces: tuple[Piece, ...]
    card: str | None = None
    is_pipeline: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is needed to open it."""
        found = [name for piece in self.pieces for name in (piece.config, piece.weights) if name]
        return (*found, *([self.card] if self.card else []))

    @property
    def is_folder(self) -> bool:
        """Whether a configuration makes a folder of it; else it is one file."""
        return self.pieces[0].config is not None


def contents(files: Iterable[str], reference: HubReference) -> Contents:
    """What the files of a repository are; raises Unavailable where it holds no adapter, or several to choose from."""
    names = set(files)
    card = CARD if CARD in names else None
    folders = sorted({name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == CONFIG})
    if "" in folders:
        return Contents((_piece("", names, reference),), card)
    if PIPELINE in names:
        return Contents((), card, is_pipeline=True)
    nested = [folder for folder in folders if "/" not in folder]
    if nested:
        return Contents(tuple(_piece(folder, names, reference) for folder in nested), card)
    found = next(([name] for name in WEIGHTS if name in names and name.endswith(".safetensors")), None)
    found = found or sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if len(found) != 1:
        raise _none_or_many(names, found, reference)
    return Contents((Piece(found[0]),), card)


def _piece(folder: str, names: set[str], reference: HubReference) -> Piece:
    inside = f"{folder}/" if folder else ""
    weights = next((inside + name for name in WEIGHTS if inside + name in names), None)
    if weights is None:
        what = f"{inside}{CONFIG} stands there without weights"
        raise Unavailable(what, path=reference.name, hint=f"expected {inside}{WEIGHTS[0]}", reason="no-adapter")
    return Piece(weights, inside + CONFIG, folder or None)


def _none_or_many(names: set[str], found: list[str], reference: HubReference) -> Unavailable:
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        message = f"the repository holds {len(found)} safetensors files: {shown}"
        hint = f"name one: {reference.name}/{found[0]}"
        return Unavailable(message, path=reference.name, hint=hint, reason="ambiguous", files=found)
    others = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".gguf")))
    hint = f"name one of its files: {reference.name}/{others[0]}" if others else "its page on the Hub lists its files"
    return Unavailable("the repository holds no adapter", path=reference.name, hint=hint, reason="no-adapter")
