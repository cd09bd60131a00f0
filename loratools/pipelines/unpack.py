"""A single-file checkpoint as the components of a pipeline: the same bytes under diffusers' and transformers' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from loratools.architectures.architecture import Architecture
from loratools.architectures.naming import skeleton
from loratools.architectures.vae import VAE_ORIGINAL
from loratools.bases.checkpoint import Checkpoint
from loratools.bases.companions import VAE_PREFIXES, companion
from loratools.errors import UnknownKeys
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import TensorSource

VAE = "vae"
_SORTS = {
    "average": "averages of the weights (EMA)",
    "counter": "counters of the training",
    "depth": "a depth model",
    "positions": "numbers of positions, which models make themselves",
    "quantisation": "scales of 8-bit weights, multiplied in",
    "schedule": "the noise schedule, which the scheduler's configuration states",
    "temperature": "a temperature, which only the training uses",
    "tied": "second names of an embedding",
}
_SAMPLES = 8


@dataclass(frozen=True)
class Unpacked:
    """Tensors by component and canonical key, and what does not go along, in words."""

    components: Mapping[str, Mapping[str, LazyTensor]]
    left_out: tuple[str, ...]


def unpack(checkpoint: Checkpoint, table: Architecture, *, allow_partial: bool = False) -> Unpacked:
    """Take a single file apart by the names of one architecture: fused layers split, transposes undone.

    Raises UnknownKeys for a tensor that no table knows, unless `allow_partial` (then it is listed).
    """
    ((_, source),) = checkpoint.base.parts
    weights = checkpoint.base.of(table)
    found: dict[str, dict[str, LazyTensor]] = {}
    taken: set[str] = set()
    for component, native in checkpoint.base.natives(table):
        if native.source is not source:
            continue
        taken.add(native.key)
        for path in native.placement.paths:
            tensor = (weights.bias if native.is_bias else weights.weight)(component, path)
            assert tensor is not None
            found.setdefault(component, {})[f"{path}.{'bias' if native.is_bias else 'weight'}"] = tensor
    vae = dict(_vae(source))
    if vae:
        found[VAE] = {canonical: source[key] for key, canonical in vae.items()}
        taken.update(vae)
    return Unpacked(found, _left_out(source, taken, allow_partial=allow_partial))


def _vae(source: TensorSource) -> Mapping[str, str]:
    """key → canonical key of every tensor of the VAE."""
    found = {}
    for key in source:
        prefix = next((prefix for prefix in VAE_PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            continue
        path, _, leaf = key.removeprefix(prefix).rpartition(".")
        placement = VAE_ORIGINAL.at_native(*skeleton(path))
        if placement is not None and placement.native == path and leaf in ("weight", "bias"):
            found[key] = f"{placement.paths[0]}.{leaf}"
    return found


def _left_out(source: TensorSource, taken: set[str], *, allow_partial: bool) -> tuple[str, ...]:
    sorts: Counter[str] = Counter()
    unknown: list[str] = []
    for key in source:
        if key in taken:
            continue
        sort = companion(key)
        if sort in _SORTS:
            sorts[sort or ""] += 1
        else:
            unknown.append(key)
    if unknown and not allow_partial:
        raise UnknownKeys(
            f"{len(unknown)} tensors of the file have no place in a pipeline",
            path=source.name,
            key=unknown[0],
            hint="--allow-partial leaves them out and lists them",
            unknown=unknown[:_SAMPLES],
        )
    lines = [f"{count} {'tensors' if count > 1 else 'tensor'}: {_SORTS[sort]}" for sort, count in sorts.items()]
    shown = [f"{key}: no table knows it" for key in unknown[:_SAMPLES]]
    more = [f"and {len(unknown) - _SAMPLES} more that no table knows"] if len(unknown) > _SAMPLES else []
    return (*lines, *shown, *more)
