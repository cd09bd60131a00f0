"""Adapters of several files brought together weight by weight, over the finest paths that they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from loratools.adapters.adapter import Adapter
from loratools.adapters.lora import LORA
from loratools.adapters.proof import clusters
from loratools.adapters.regroup import regroup
from loratools.adapters.slices import Groups
from loratools.adapters.terms import Term, require_additive
from loratools.adapters.to_lora import to_lora
from loratools.errors import NotRepresentable
from loratools.model import Target


@dataclass(frozen=True, slots=True)
class Input:
    """The adapters of one file, the weight of its deltas, and the blocks that an earlier conversion recorded in it."""

    adapters: tuple[Adapter, ...]
    weight: Fraction
    recorded: Groups | None = None


def gathered(inputs: Sequence[Input]) -> list[list[Term]]:
    """The terms of every weight, in the order of the first input that changes it.

    Where one file fuses what another splits, both are cut into single paths, exactly; kinds whose rows cannot be cut
    become LoRA first. Raises NotRepresentable where that is no algebra.
    """
    numbers: dict[int, int] = {}
    everything: list[Adapter] = []
    for number, item in enumerate(inputs):
        for adapter in item.adapters:
            copy = replace(adapter)  # the same object may stand in several inputs
            numbers[id(copy)] = number
            everything.append(copy)
    found: list[list[Term]] = []
    for members, _ in clusters(everything, []):
        if len({item.target.paths for item in members}) == 1:
            found.append([Term(item, inputs[numbers[id(item)]].weight, numbers[id(item)]) for item in members])
            continue
        by_path: dict[str, list[Term]] = {}
        for number in dict.fromkeys(numbers[id(item)] for item in members):
            own = [item for item in members if numbers[id(item)] == number]
            for part in _split(own, inputs[number].recorded):
                by_path.setdefault(part.target.paths[0], []).append(Term(part, inputs[number].weight, number))
        found += by_path.values()
    return found


def _split(adapters: Sequence[Adapter], recorded: Groups | None) -> tuple[Adapter, ...]:
    """The same deltas with a path for each adapter."""
    try:
        return regroup(adapters, _single, recorded).adapters
    except NotRepresentable:
        if all(item.kind == LORA.name for item in adapters):
            raise
        for item in adapters:
            require_additive(item)
        return regroup([to_lora(item).adapter for item in adapters], _single).adapters


def _single(component: str, path: str) -> Target:
    return Target(component, (path,))
