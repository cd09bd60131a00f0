"""The proof of a combination: every layer as re-opened against the weighted sum, or against the elected delta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.combine import Combination
from loratools.adapters.difference import difference, relative
from loratools.adapters.kind import bias_delta_of
from loratools.adapters.proof import Proof, prove
from loratools.adapters.regroup import regroup
from loratools.adapters.terms import sum_of, weighted
from loratools.model import Target
from loratools.operations.outputs.derived import LIMIT, Promise
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

_CANCELLED = 1e-11  # of the sum of the terms' norms: what float64 leaves of deltas that cancel each other
_HALF_UNIT = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def promise(combinations: Sequence[Combination], dtype: str | None) -> Promise:
    """What stays as it was is identical; sums keep to the error of their rank and the rounding of their casts."""
    owner = {id(term.adapter): made for made in combinations for term in made.terms}
    beside = _HALF_UNIT.get(dtype or "F32", 0.0)

    def of(source: Sequence[Adapter]) -> list[Combination]:
        return list({id(owner[id(item)]): owner[id(item)] for item in source}.values())

    def prover(source: Sequence[Adapter], output: Sequence[Adapter]) -> Proof:
        made = of(source)
        if all(_untouched(item) for item in made):
            return prove(source, output)
        return _measured(made, output)

    def allowed(source: Sequence[Adapter]) -> float:
        made = of(source)
        if all(_untouched(item) for item in made):
            return LIMIT if dtype is None else math.inf
        for item in made:
            item.settle()
        norms = [item.norm for item in made]
        if None in norms:
            return LIMIT + beside + max(_rounded(item) for item in made)
        norm = math.sqrt(math.fsum((value or 0.0) ** 2 for value in norms))
        lost = math.sqrt(math.fsum(((item.norm or 0.0) * (item.error or 0.0)) ** 2 for item in made))
        rounded = math.sqrt(math.fsum(item.rounding**2 for item in made))
        return relative(lost, norm) * (1 + LIMIT) + max(relative(rounded, norm), beside) + LIMIT

    return Promise(prover, allowed, [])


def _untouched(made: Combination) -> bool:
    return len(made.terms) == 1 and made.terms[0].weight == 1 and made.method.name in ("concat", "linear")


def _rounded(made: Combination) -> float:
    """The rounding relative to the sum, whose norm the factors alone do not tell."""
    if not made.rounding:
        return 0.0
    norm = difference([weighted(term) for term in made.terms], []).norm_a
    return relative(made.rounding, norm)


def _measured(made: Sequence[Combination], output: Sequence[Adapter]) -> Proof:
    """‖Σ − Δ'‖ / ‖Σ‖ over all weights of the cluster, or of its biases where that is more."""
    written = _by_path(output)
    apart = whole = beside = mass = 0.0
    for item in made:
        terms = [_elected(item)] if item.method.dense and item.norm is not None else list(map(weighted, item.terms))
        sides = [_by_path([term]) for term in terms]
        outputs = output if len(made) == 1 and all(o.target.paths == terms[0].target.paths for o in output) else None
        if outputs is not None:
            pairs = [(terms, list(outputs))]
        else:
            paths = dict.fromkeys(path for side in sides for path in side)
            pairs = [([side[path] for side in sides if path in side], _found(written, path)) for path in paths]
        for ours, theirs in pairs:
            found = difference(ours, theirs)
            apart += found.distance**2
            whole += found.norm_a**2
            if found.relative_error > relative(found.distance, found.norm_a):
                beside = max(beside, found.relative_error)
            if found.relative_error > LIMIT and len(ours) > 1:
                mass += math.fsum(difference([term], []).norm_a for term in ours)
    error = relative(math.sqrt(apart), math.sqrt(whole))
    if math.sqrt(apart) <= _CANCELLED * mass:
        error = 0.0
    return Proof("measured", max(error, beside))


def _found(written: Mapping[str, Adapter], path: str) -> list[Adapter]:
    return [written[path]] if path in written else []


def _by_path(adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """Every path with an adapter of its own."""
    if all(len(item.target.paths) == 1 for item in adapters):
        return {item.target.paths[0]: item for item in adapters}
    parts = regroup(adapters, lambda component, path: Target(component, (path,))).adapters
    return {item.target.paths[0]: item for item in parts}


def _elected(made: Combination) -> Adapter:
    """The delta that the inputs elect, as a whole difference, with the sum of their biases."""
    first = made.terms[0].adapter
    delta: torch.Tensor = made.merged()
    factors = {"diff": LazyTensor.from_torch(delta)}
    biases = [term for term in made.terms if bias_delta_of(term.adapter) is not None]
    if biases:
        held = [(_bias(term.adapter), float(term.weight)) for term in biases]
        factors["bias_diff"] = sum_of(held, "F64")
    return Adapter(first.target, "full", factors, origin=first.origin)


def _bias(adapter: Adapter) -> LazyTensor:
    found = bias_delta_of(adapter, dtype="float64")
    assert found is not None
    return LazyTensor.from_torch(found)
