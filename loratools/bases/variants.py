"""Variants of a model's weights, as diffusers names them: `diffusion_pytorch_model.fp16.safetensors` is fp16's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from loratools.bases.checkpoint import Checkpoint, WeightsFile
from loratools.bases.weights import open_base
from loratools.errors import UsageError, nearest
from loratools.tensors.source import TensorSource

_WEIGHTS = re.compile(
    r"[^.]+?(\.(?P<before>[^.]+?))?(-\d{5}-of-\d{5})?(\.(?P<after>[^.]+))?\.(safetensors|bin|msgpack|onnx)"
)
_INDEX = re.compile(r"[^.]+\.(safetensors|bin)\.index(\.(?P<variant>[^.]+))?\.json")


def variant_of(name: str) -> str | None:
    """The variant that a file of weights, or an index, is of by its name; None for the plain ones."""
    last = PurePosixPath(name).name
    found = _INDEX.fullmatch(last)
    if found:
        return found["variant"]
    found = _WEIGHTS.fullmatch(last)
    return (found["before"] or found["after"]) if found else None


def variants_of(checkpoint: Checkpoint) -> tuple[str | None, ...]:
    """The variants that a folder can be loaded as: None where every component has plain weights."""
    by_folder: dict[str, set[str | None]] = {}
    for item in checkpoint.weights:
        by_folder.setdefault(item.folder, set()).add(variant_of(item.name))
    named = sorted({name for found in by_folder.values() for name in found if name is not None})
    plain = all(None in found for found in by_folder.values())
    loadable = [name for name in named if all({name, None} & found for found in by_folder.values())]
    return (*((None,) if plain else ()), *loadable)


def files_of(checkpoint: Checkpoint, variant: str | None) -> dict[str, list[WeightsFile]]:
    """The files of weights that diffusers loads, by component: those of the variant, else the plain ones."""
    found: dict[str, list[WeightsFile]] = {}
    for item in checkpoint.weights:
        found.setdefault(item.folder, []).append(item)
    for folder, items in found.items():
        wanted = variant if any(variant_of(item.name) == variant for item in items) else None
        found[folder] = [item for item in items if variant_of(item.name) == wanted]
    return found


def of_variant(checkpoint: Checkpoint, variant: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """The folder with the weights of one variant alone, and the names of those left out: a component that does not have
    it keeps its plain ones. Raises UsageError where no component has it.
    """
    there = {found for item in checkpoint.weights if (found := variant_of(item.name)) is not None}
    if variant not in there:
        hint = nearest(variant, there) or (f"there are {', '.join(sorted(there))}" if there else "there are none")
        raise UsageError(f"the base model has no variant {variant!r}", path=checkpoint.name, hint=hint)
    kept = [item for items in files_of(checkpoint, variant).values() for item in items]
    loaded = {item.name for item in kept}
    left = [item for item in checkpoint.weights if item.name not in loaded]
    parts: Mapping[int, tuple[str | None, TensorSource]] = {
        id(item.part): (item.folder or None, item.part) for item in kept
    }
    indices = {item.index for item in left} - {item.index for item in kept}
    others = {name: file for name, file in checkpoint.others.items() if name not in indices}
    base = open_base(checkpoint.name, tuple(parts.values()))
    names = tuple(item.name for item in left)
    return replace(checkpoint, weights=tuple(kept), others=others, base=base), names
