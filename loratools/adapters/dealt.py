"""Weights whose parts are dealt out by rows: some of q, some of k, some of v, and round again, as their heads are."""

from __future__ import annotations

from collections.abc import Callable

from loratools.adapters.factors import Factors, refusal
from loratools.adapters.kind import Kind
from loratools.tensors.lazy import LazyTensor, stack_rows

# Each row of their factors that has an output axis is a row of the weight.
_KINDS = ("full", "loha", "lora")

Order = Callable[[int], list[int]]


def gathered(kind: Kind, factors: Factors, parts: int, hand: int) -> dict[str, LazyTensor]:
    """The factors with the parts one after another, of a weight that has `hand` rows of each in turn: exact."""

    def order(rounds: int) -> list[int]:
        return [turn * parts + part for part in range(parts) for turn in range(rounds)]

    return _moved(kind, factors, parts * hand, hand, order)


def dealt(kind: Kind, factors: Factors, parts: int, hand: int) -> dict[str, LazyTensor]:
    """The way back: factors whose parts stand one after another, dealt out, `hand` rows of each in turn."""

    def order(rounds: int) -> list[int]:
        return [part * rounds + turn for turn in range(rounds) for part in range(parts)]

    return _moved(kind, factors, parts * hand, hand, order)


def _moved(kind: Kind, factors: Factors, round_rows: int, hand: int, order: Order) -> dict[str, LazyTensor]:
    """The blocks of `hand` rows in that order; NotRepresentable for kinds whose rows are not the weight's."""
    if kind.name not in _KINDS or "embedding_down" in factors:
        raise refusal(
            kind.name, "dealt", "its rows are not those of the weight", "make it a LoRA first: --to-kind lora"
        )
    follows = {role.name for role in kind.roles if role.rows}
    found = dict(factors)
    for role in follows & set(factors):
        tensor = factors[role]
        rounds, rest = divmod(tensor.shape[0], round_rows)
        if rest:
            raise refusal(kind.name, "dealt", f"{tensor.shape[0]} rows are no whole rounds of {round_rows}")
        found[role] = stack_rows([tensor.rows(block * hand, (block + 1) * hand) for block in order(rounds)])
    return found
