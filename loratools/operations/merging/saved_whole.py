"""Modules that PEFT saved whole beside its adapters: merging puts them in the place of the base's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loratools.adapters.adapter import AdapterSet
from loratools.architectures.architecture import Architecture
from loratools.architectures.naming import skeleton
from loratools.bases.placing import Placing
from loratools.formats.peft import PREFIX
from loratools.tensors.lazy import LazyTensor

_WRAPPED = ".base_layer"  # where PEFT keeps the weight and the bias of a layer that has factors


def place_saved(
    placing: Placing,
    source: AdapterSet,
    table: Architecture | None,
    scale_of: Callable[[str, str], float],
    *,
    skip: str | None = None,
) -> tuple[str, ...]:
    """Put every tensor saved whole in its place, W + scale·(saved − W); a line for each that has none in weights.

    `scale_of` says the scale by component and path; the path `skip` is passed over.
    """
    left: list[str] = []
    for component, saved in source.extras.items():
        for key, tensor in saved.items():
            if not key.startswith(PREFIX):
                left.append(f"{key}: an embedding, which no weight holds; load it beside the merged model")
                continue
            path, leaf = _place(key, table, component)
            if path != skip and not placing.replace(component, path, leaf, tensor, scale_of(component, path)):
                left.append(f"{key}: saved whole, and the base model holds no such weight")
    return tuple(left)


def saved_modules(source: AdapterSet, table: Architecture | None) -> Iterator[tuple[str, str, str, LazyTensor]]:
    """Every tensor saved whole that belongs in a model: component, canonical path, "weight" or "bias", the tensor."""
    for component, saved in source.extras.items():
        for key, tensor in saved.items():
            if key.startswith(PREFIX):
                yield component, *_place(key, table, component), tensor


def _place(key: str, table: Architecture | None, component: str) -> tuple[str, str]:
    """The canonical path of a tensor saved whole, and "weight" or "bias"."""
    path, _, leaf = key.removeprefix(PREFIX).rpartition(".")
    return _canonical(table, component, path.removesuffix(_WRAPPED)), leaf


def _canonical(table: Architecture | None, component: str, path: str) -> str:
    """The canonical path of a module by any naming of its component."""
    if table is None or component not in table.by_name:
        return path
    for naming in table.by_name[component].namings:
        placement = naming.at_native(*skeleton(path))
        if placement is not None and len(placement.paths) == 1:
            return placement.paths[0]
    return path
