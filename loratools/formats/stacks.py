"""Adapters of single experts put together for PEFT's `target_parameters`, which knows one pair of matrices for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import Factors, widened
from loratools.adapters.fold import alpha_for, folded
from loratools.adapters.kind import kind_of
from loratools.adapters.regroup import Step, common_scale, ratio_of
from loratools.architectures.llm_namings import STACKED, number_of, stacked_name
from loratools.errors import NotRepresentable
from loratools.formats.experts import INNER, ROUTER, WEIGHT
from loratools.formats.spell import Writer, suffix_of
from loratools.model import Alpha, Target
from loratools.tensors.interleave import interleaved
from loratools.tensors.lazy import LazyTensor, stack_rows

Row = tuple[str, int, Fraction]
"""A module or a parameter by its path, its rank and its alpha."""

_PAIR = ("down", "up")


class Pile(NamedTuple):
    """All experts of one parameter: its path, the factors of all, the rank of each and the alpha of all."""

    parameter: str
    down: LazyTensor
    up: LazyTensor
    rank: int
    alpha: Alpha

    @property
    def module(self) -> str:
        """The module that has the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def row(self) -> Row:
        """What a configuration says of it."""
        return self.parameter, self.rank, Fraction(self.rank) if self.alpha.value is None else self.alpha.value


class Piled(NamedTuple):
    """The adapters that are layers of their own, the piles of the others, and a step for each pile."""

    plain: list[Adapter]
    piles: list[Pile]
    steps: list[Step]

    def tensors(self, writer: Writer) -> dict[str, LazyTensor]:
        """The factors of every pile by key: the first parameter of a module stands innermost."""
        order = {name: at for at, name in enumerate(STACKED)}
        found: dict[str, LazyTensor] = {}
        for pile in self.piles:
            beside = [other for other in self.piles if other.module == pile.module]
            later = [other for other in beside if _place(other, order) > _place(pile, order)]
            stem = writer.spelling.prefix + pile.module + INNER * len(later)
            for role, tensor in zip(_PAIR, (pile.down, pile.up), strict=True):
                found[f"{stem}{suffix_of(writer.spelling.suffixes, 'lora', role)}"] = tensor
        return found

    def parameters(self, writer: Writer) -> tuple[list[Row], list[Adapter]]:
        """What PEFT is to wrap as parameters, the routers among them, and the adapters of modules."""
        if not writer.stacked:
            return [], self.plain
        routers = [item for item in self.plain if writer.placement(item.target.paths[0]).native.endswith(ROUTER)]
        rows = [pile.row for pile in self.piles]
        for item in routers:
            rank, value = item.rank or 0, item.alpha.value
            path = f"{writer.placement(item.target.paths[0]).native}.{WEIGHT}"
            rows.append((path, rank, Fraction(rank) if value is None else value))
        return rows, [item for item in self.plain if item not in routers]


def _place(pile: Pile, order: Mapping[str, int]) -> int:
    return order.get(pile.parameter.rpartition(".")[2], len(order))


def piled(members: Sequence[Adapter], writer: Writer) -> Piled:
    """The adapters of one component, those of stacked experts put together; missing experts and ranks become zeros.

    Raises NotRepresentable for an expert's adapter that is no pair of matrices.
    """
    if not writer.stacked:
        return Piled(list(members), [], [])
    plain: list[Adapter] = []
    found: dict[str, dict[int, Adapter]] = {}
    for item in members:
        native = writer.placement(item.target.paths[0]).native
        parameter = stacked_name(native)
        if parameter is None:
            plain.append(item)
        else:
            _require_pair(item, parameter)
            found.setdefault(parameter, {})[number_of(native)] = item
    count = 1 + max((number for experts in found.values() for number in experts), default=-1)
    piles, steps = [], []
    for parameter, experts in found.items():
        pile, step = _pile(parameter, experts, count)
        piles.append(pile)
        steps.append(step)
    return Piled(plain, piles, steps)


def _require_pair(item: Adapter, parameter: str) -> None:
    if item.kind != "lora" or set(item.factors) != set(_PAIR):
        other = next((role for role in item.factors if role not in _PAIR), item.kind)
        raise NotRepresentable(
            f"{item.target.name}: PEFT changes {parameter} by two matrices alone, and this has {other}",
            path=item.origin.file if item.origin else None,
            key=item.origin.stem if item.origin else None,
            hint="--names split keeps a layer for each expert",
        )


def levelled(experts: Mapping[int, Factors], rank: int, count: int) -> list[tuple[LazyTensor, LazyTensor]]:
    """(down [rank, in], up [out, rank]) of `count` experts in one dtype, padded with zeros, which missing ones are."""
    dtypes = {factors[role].dtype for factors in experts.values() for role in _PAIR}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32"
    pairs: dict[int, tuple[LazyTensor, LazyTensor]] = {}
    for number, factors in experts.items():
        down, up = (widened(factors[role], dtype).reshape(*factors[role].shape[:2]) for role in _PAIR)
        more = rank - down.shape[0]
        pairs[number] = (down.pad_rows(0, more), up.pad_columns(0, more)) if more else (down, up)
    first = next(iter(pairs.values()))
    none = (LazyTensor.zeros(first[0].dtype, first[0].shape), LazyTensor.zeros(first[1].dtype, first[1].shape))
    return [pairs.get(number, none) for number in range(count)]


def _pile(parameter: str, experts: Mapping[int, Adapter], count: int) -> tuple[Pile, Step]:
    members = list(experts.values())
    scale = common_scale([item.scale for item in members])
    rank = max(item.rank or 0 for item in members)
    exact, equal = True, True
    scaled: dict[int, Factors] = {}
    for number, item in experts.items():
        factors = item.factors
        if not item.scale.equals(scale):
            factors, kept = folded(kind_of(item.kind), factors, ratio_of(item.scale, scale))
            exact, equal = exact and kept, False
        scaled[number] = factors
    held = levelled(scaled, rank, count)
    alpha, kept = alpha_for(members[0].alpha, scale, rank)
    if members[0].alpha.rank_stabilized and not alpha.rank_stabilized:  # one switch is for the whole configuration
        alpha = alpha._replace(value=Fraction(float(scale) * math.sqrt(rank)), rank_stabilized=True)
    target = Target(members[0].target.component, (parameter,))
    padded = len(experts) < count or any(item.rank != rank for item in members)
    note = f"{len(experts)} of {count} experts at rank {rank}" + ("" if equal else "; brought to one scale")
    step = Step(target, "pad" if padded else "block", note, measured=not (exact and kept))
    down, up = stack_rows([pair[0] for pair in held]), interleaved([pair[1] for pair in held])
    return Pile(parameter, down, up, rank, alpha), step
