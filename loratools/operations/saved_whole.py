"""Modules that PEFT saved whole beside its adapters: merging puts them in the place of the base's."""

from __future__ import annotations

from collections.abc import Sequence

from loratools.adapters.adapter import AdapterSet
from loratools.architectures.architecture import Architecture
from loratools.architectures.naming import skeleton
from loratools.bases.placing import Placing
from loratools.formats.peft import PREFIX


def place_saved(
    placing: Placing, source: AdapterSet, table: Architecture | None, scale: float, components: Sequence[str] | None
) -> tuple[str, ...]:
    """Put every tensor saved whole in its place, W + scale·(saved − W); a line for each that has none in weights."""
    left: list[str] = []
    for component, saved in source.extras.items():
        if components and component and component not in components:
            continue
        for key, tensor in saved.items():
            path, _, leaf = key.removeprefix(PREFIX).rpartition(".")
            if not key.startswith(PREFIX):
                left.append(f"{key}: an embedding, which no weight holds; load it beside the merged model")
                continue
            if not placing.replace(component, _canonical(table, component, path), leaf, tensor, scale):
                left.append(f"{key}: saved whole, and the base model holds no such weight")
    return tuple(left)


def _canonical(table: Architecture | None, component: str, path: str) -> str:
    """The canonical path of a module by any naming of its component."""
    if table is None or component not in table.by_name:
        return path
    for naming in table.by_name[component].namings:
        placement = naming.at_native(*skeleton(path))
        if placement is not None and len(placement.paths) == 1:
            return placement.paths[0]
    return path
