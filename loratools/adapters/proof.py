"""The proof that one set of adapters makes the same deltas as another: identical, exact, or measured, path by path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from loratools.adapters.adapter import Adapter
from loratools.adapters.bias import STORED, with_bias_as
from loratools.adapters.difference import difference
from loratools.adapters.exact import identical, same_product, widened_rank, zero
from loratools.adapters.kind import delta_of
from loratools.adapters.regroup import covered
from loratools.adapters.slices import rows_by_path, sizes_of
from loratools.errors import NotRepresentable
from loratools.model import Target
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

Certainty = Literal["identical", "exact", "measured"]
Cluster: TypeAlias = tuple[list[Adapter], list[Adapter]]
_ORDER: tuple[Certainty, ...] = ("identical", "exact", "measured")


class Proof(NamedTuple):
    """How a cluster is proven, and the relative error of its delta: exactly 0 unless measured."""

    kind: Certainty
    error: float


def clusters(source: Sequence[Adapter], output: Sequence[Adapter]) -> list[Cluster]:
    """The adapters of both sides that have paths in common, directly or by way of others, in the source's order."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for adapter in (*source, *output):
        first, *others = [(adapter.target.component, path) for path in adapter.target.paths]
        for node in others:
            parent[root(node)] = root(first)
        root(first)
    found: dict[tuple[str, str], Cluster] = {}
    for side, adapters in enumerate((source, output)):
        for adapter in adapters:
            node = root((adapter.target.component, adapter.target.paths[0]))
            found.setdefault(node, ([], []))[side].append(adapter)
    return list(found.values())


def prove(source: Sequence[Adapter], output: Sequence[Adapter], base: torch.Tensor | None = None) -> Proof:
    """Prove one cluster at its finest common paths; its proof is its weakest path's, its error its worst path's.

    A path that only one side has is exact where its delta is zero, else its error is infinite. `base` is the weight of
    the cluster, where it is a single one. Nothing imports torch as long as every path is identical.
    """
    if len(source) == len(output) == 1 and source[0].target.paths == output[0].target.paths:
        return _prove_one(source[0], output[0], base)
    if not source or not output:
        return _weakest([_prove_one(item, None, base) for item in (*source, *output)])
    pairs, sliced = _aligned(source, output, base)
    found = _weakest([_prove_one(ours, theirs, None) for ours, theirs in pairs])
    # Where some kind cannot be sliced, the deltas are formed, and equal ones are still only measured to be equal.
    return found if sliced else Proof("measured", found.error)


def aligned(source: Sequence[Adapter], output: Sequence[Adapter]) -> list[tuple[Adapter | None, Adapter | None]]:
    """A cluster as pairs over its finest common paths; None where one side does not have a path."""
    if len(source) == len(output) == 1 and source[0].target.paths == output[0].target.paths:
        return [(source[0], output[0])]
    if not source or not output:
        return [(item, None) for item in source] + [(None, item) for item in output]
    return _aligned(source, output, None)[0]


def _aligned(
    source: Sequence[Adapter], output: Sequence[Adapter], base: torch.Tensor | None
) -> tuple[list[tuple[Adapter | None, Adapter | None]], bool]:
    """The pairs, and whether the factors could be sliced (else they are dense deltas)."""
    try:
        ours, theirs = _by_path(source), _by_path(output)
        sliced = True
    except NotRepresentable:
        ours, theirs = _dense_by_path(source, base), _dense_by_path(output, base)
        sliced = False
    return [(ours.get(path), theirs.get(path)) for path in dict.fromkeys((*ours, *theirs))], sliced


def _weakest(proofs: Sequence[Proof]) -> Proof:
    kinds = {proof.kind for proof in proofs}
    weakest = next((kind for kind in reversed(_ORDER) if kind in kinds), _ORDER[0])
    return Proof(weakest, max((proof.error for proof in proofs), default=0.0))


def _prove_one(ours: Adapter | None, theirs: Adapter | None, base: torch.Tensor | None) -> Proof:
    """One path: identical bytes and scales, the same values in another layout, or the measured difference."""
    if ours is None or theirs is None:
        one = ours or theirs
        if one is None or zero(one):
            return Proof("exact", 0.0)
        found = difference([one], [], base)
        return Proof("measured", math.inf if found.relative_error else 0.0)
    if ours.factors.keys() != theirs.factors.keys():
        ours, theirs = with_bias_as(ours, STORED), with_bias_as(theirs, STORED)
    if identical(ours, theirs):
        return Proof("identical", 0.0)
    if widened_rank(ours, theirs) or widened_rank(theirs, ours) or (zero(ours) and zero(theirs)):
        return Proof("exact", 0.0)
    if same_product(ours, theirs):
        return Proof("exact", 0.0)
    return Proof("measured", difference([ours], [theirs], base).relative_error)


def _by_path(adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """Every path with an adapter of its own: its rows, the scale of the whole; IncompleteAdapter on a second one."""
    covered(adapters)
    found: dict[str, Adapter] = {}
    for adapter in adapters:
        for path, factors in rows_by_path(adapter).items():
            target = adapter.target._replace(paths=(path,), ratio=(1,))
            found[path] = replace(adapter, target=target, factors=factors)
    return found


def _dense_by_path(adapters: Sequence[Adapter], base: torch.Tensor | None) -> dict[str, Adapter]:
    """The same for kinds whose rows cannot be sliced: their dense float64 deltas, sliced."""
    found: dict[str, Adapter] = {}
    for adapter in adapters:
        for path, delta in _dense_parts(adapter, base):
            stored = LazyTensor.from_torch(delta)
            found[path] = Adapter(
                Target(adapter.target.component, (path,)), "full", _diff(stored), origin=adapter.origin
            )
    return found


def _diff(stored: LazyTensor) -> Mapping[str, LazyTensor]:
    return {"diff": stored}


def _dense_parts(adapter: Adapter, base: torch.Tensor | None) -> Iterator[tuple[str, torch.Tensor]]:
    delta = delta_of(adapter, base, dtype="float64")
    start = 0
    for path, size in zip(adapter.target.paths, sizes_of(adapter), strict=True):
        yield path, delta[start : start + size]
        start += size
