"""Deltas of several adapters thinned out and added up: by magnitude or by dice, with or without a vote on the sign.

TIES (arXiv 2306.01708): of each delta the largest elements stay; where they disagree, the sign of their sum wins, and
those of that sign are averaged. DARE (arXiv 2311.03099): elements are dropped by chance, and the others divided by the
share that stays. The definitions are those of peft.utils.merge_utils, on dense deltas, weights last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Election:
    """One method: whether elements are dropped by dice (else by magnitude), and whether signs are voted on."""

    dice: bool
    vote: bool


ELECTIONS: Mapping[str, Election] = {
    "ties": Election(dice=False, vote=True),
    "dare_ties": Election(dice=True, vote=True),
    "dare_linear": Election(dice=True, vote=False),
    "magnitude_prune": Election(dice=False, vote=False),
}


def elected(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], method: str, density: float, seeds: Sequence[int]
) -> torch.Tensor:
    """One delta out of many of the same shape and dtype; `density` in (0, 1] is the share of elements that stays.

    `seeds` are for the dice, one for each delta.
    """
    import torch

    rule = ELECTIONS[method]
    kept = [
        by_dice(delta, density, seed) if rule.dice else by_magnitude(delta, density)
        for delta, seed in zip(deltas, seeds, strict=True)
    ]
    if not rule.vote:
        return torch.stack([delta * weight for delta, weight in zip(kept, weights, strict=True)]).sum(0)
    stack = torch.stack(kept)
    majority = torch.where(stack.sum(0) >= 0, 1, -1)
    agree = stack.sign() == majority
    weighted = stack * stack.new_tensor(list(weights)).reshape(-1, *(1,) * (stack.dim() - 1))
    return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def by_magnitude(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The largest elements, zeros elsewhere."""
    import torch

    if density >= 1:
        return delta
    flat = delta.reshape(-1)
    places = torch.topk(flat.abs(), int(density * flat.numel())).indices
    kept = torch.zeros_like(flat)
    kept[places] = flat[places]
    return kept.reshape(delta.shape)


def by_dice(delta: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    """Each element with the chance `density`, divided by it, zero otherwise."""
    import torch

    if density >= 1:
        return delta
    generator = torch.Generator().manual_seed(seed)
    return delta * torch.bernoulli(torch.full_like(delta, density), generator=generator) / density


def seed_of(seed: int, name: str, number: int) -> int:
    """The seed of one layer of one input: the same whatever the order or the number of threads."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{number}".encode()).digest()[:7], "little")
