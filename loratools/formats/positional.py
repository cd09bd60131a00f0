"""cloneofsimo's files, which number their layers: `unet:0:up`, or a bare list of up, down, up, down, …

A number says nothing by itself. Every layer's shape is held against the order in which torch walks the model's
modules, and a file that does not fit some order in all of its layers is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from math import prod

from loratools.architectures.architecture import Shapes, shapes
from loratools.architectures.walks import BLOCK_ORDERS, CLASSES, TEXT_CLASSES, WALKED, clip_walk, unet_walk
from loratools.errors import ArchitectureMismatch, IncompleteAdapter
from loratools.formats.format import NUMBERED
from loratools.formats.suffixes import Suffix
from loratools.tensors.source import TensorSource

FAMILY = "cloneofsimo"
ROWS = {role: Suffix(f".lora_{role}.weight", role, "lora", FAMILY) for role in ("up", "down")}
_KEY = re.compile(r"(unet|text_encoder):(0|[1-9]\d{0,5}):(up|down)")
_ITEM = re.compile(r"0|[1-9]\d{0,5}")
_SORTS = (frozenset({"attention", "geglu"}), frozenset({"attention"}), frozenset({"attention", "geglu", "resnet"}))

# number of a layer → role → key
Numbered = Mapping[int, Mapping[str, str]]


def placed(source: TensorSource) -> dict[str, tuple[str, Suffix, str]]:
    """key → (component, row, path) of the numbered layers; nothing for a file that numbers none.

    Raises IncompleteAdapter where a number is missing, ArchitectureMismatch where the shapes fit no order.
    """
    if NUMBERED in source:
        from loratools.formats.positional_cascade import placed_in_cascade  # a model that few files are for

        return placed_in_cascade(source)
    found: dict[str, tuple[str, Suffix, str]] = {}
    for component, layers in _numbered(source).items():
        _require_whole(layers, source)
        name, paths = _fitting(component, layers, source)
        for number, roles in layers.items():
            found |= {key: (name, ROWS[role], paths[number]) for role, key in roles.items()}
    return found


def _numbered(source: TensorSource) -> dict[str | None, dict[int, dict[str, str]]]:
    """component (None in a bare list) → its numbered layers."""
    found: dict[str | None, dict[int, dict[str, str]]] = {}
    bare = [key for key in source if _ITEM.fullmatch(key)]
    if bare and len(bare) == len(source):
        for key in bare:
            at, role = divmod(int(key), 2)
            found.setdefault(None, {}).setdefault(at, {})["down" if role else "up"] = key
        return found
    for key in source:
        match = _KEY.fullmatch(key)
        if match:
            found.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = key
    return found


def _require_whole(layers: Numbered, source: TensorSource) -> None:
    """Every number from 0 on, each with its two matrices of one rank."""
    for number in range(len(layers)):
        roles = layers.get(number, {})
        if len(roles) != len(ROWS):
            key = next(iter(roles.values()), next(iter(layers[min(layers)].values())))
            raise IncompleteAdapter(f"layer {number} of a numbered file is not there whole", path=source.name, key=key)
        up, down = (source[roles[role]].shape for role in ("up", "down"))
        if len(up) < 2 or len(down) < 2 or up[1] != down[0] or prod(up[2:]) != 1:
            raise IncompleteAdapter(f"layer {number} is no pair: {up} and {down}", path=source.name, key=roles["up"])


def _fitting(component: str | None, layers: Numbered, source: TensorSource) -> tuple[str, list[str]]:
    """The component and the paths, in order, that the shapes of all layers agree with."""
    tried: list[str] = []
    for what, name, paths, table in _orders(component, source):
        wrong = next(
            (at for at, path in enumerate(paths) if at in layers and not _agrees(layers[at], path, table, source)), None
        )
        if wrong is None and len(paths) == len(layers):
            return name, paths
        if len(paths) != len(layers):
            tried.append(f"{what} has {len(paths)} layers")
        elif wrong is not None:
            tried.append(f"{what} has {list(table[paths[wrong]])} at number {wrong}, {paths[wrong]}")
    first = next(iter(layers.values()))["up"]
    raise ArchitectureMismatch(
        f"the {len(layers)} numbered layers fit no known order of modules: {'; '.join(dict.fromkeys(tried))}",
        path=source.name,
        key=first,
        hint="the order of Stable Diffusion 1 and 2 is known, as cloneofsimo's trainer walked them",
    )


def _orders(component: str | None, source: TensorSource) -> Iterator[tuple[str, str, list[str], Shapes]]:
    """(what it is called, component, paths in order, shapes) of every order that the file's classes allow."""
    for known in WALKED:
        tables = shapes(known.architecture.variants[0].shapes)
        if component in ("unet", None):
            for held in _sorts(component, source, CLASSES, _SORTS):
                for order in BLOCK_ORDERS:
                    what = f"{known.architecture.id}'s UNet ({', '.join(sorted(held))})"
                    yield what, "unet", list(unet_walk(known.unet, held, order)), tables["unet"]
        if component in ("text_encoder", None):
            for _ in _sorts(component, source, TEXT_CLASSES, (frozenset({"attention"}),)):
                what = f"{known.architecture.id}'s text encoder"
                yield what, "text_encoder", list(clip_walk(known.text_layers)), tables["text_encoder"]


def _sorts(
    component: str | None, source: TensorSource, classes: Mapping[str, str], usual: tuple[frozenset[str], ...]
) -> tuple[frozenset[str], ...]:
    """What the classes named in the metadata hold; the usual ones where none are named, none where one is unknown."""
    raw = source.metadata.get(component) if component else None
    if raw is None:
        return usual
    try:
        names = json.loads(raw)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return usual
    held = frozenset(classes[name] for name in names if name in classes)
    return (held,) if all(name in classes for name in names) else ()


def _agrees(roles: Mapping[str, str], path: str, table: Shapes, source: TensorSource) -> bool:
    """Whether a pair makes a weight of the shape that the path has."""
    out, *rest = table[path]
    return source[roles["up"]].shape[0] == out and prod(source[roles["down"]].shape[1:]) == prod(rest)
