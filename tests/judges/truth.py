"""What a file truly does to each module, and how far something else is from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

Place = tuple[str, str]
"""(component, canonical path): for every CLIP with the `text_model.` level, whatever the installed class has."""

CLIP_LEVEL = "text_model."
CLIP_TOPS = ("encoder.layers.", "embeddings.", "final_layer_norm")


@dataclass(frozen=True)
class Truth:
    """A file or folder made by third parties, and the float64 change of every weight and bias it touches."""

    path: Path
    architecture: str
    deltas: Mapping[Place, torch.Tensor]
    biases: Mapping[Place, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """How two sets of deltas differ: relative error by place, and places on one side only."""

    errors: Mapping[Place, float]
    missing: tuple[Place, ...]
    unexpected: tuple[Place, ...]

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(self.errors.values(), default=0.0)

    def beyond(self, tolerance: float) -> dict[Place, float]:
        """The places whose error is above `tolerance`."""
        return {place: error for place, error in self.errors.items() if not error <= tolerance}

    def wrong(self, tolerance: float) -> int:
        """How many places are off, missing or unexpected."""
        return len(self.beyond(tolerance)) + len(self.missing) + len(self.unexpected)


def place(component: str, module_path: str) -> Place:
    """The place of a module of an installed class."""
    canonical = module_path
    if component.startswith("text_encoder") and module_path.startswith(CLIP_TOPS):
        canonical = CLIP_LEVEL + module_path
    return component, canonical


def module_path(model: nn.Module, canonical: str) -> str:
    """The path by which an installed class knows a canonical path."""
    names = {name for name, _ in model.named_modules()}
    return canonical if canonical in names else canonical.removeprefix(CLIP_LEVEL)


def weights(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` that a LoRA can change, by path: PEFT takes no convolution in groups."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))}
    return {name: part for name, part in found.items() if getattr(part, "groups", 1) == 1}


def spread(names: list[str], most: int | None) -> list[str]:
    """At most `most` of the names, evenly spaced, the first and the last among them."""
    if most is None or len(names) <= most:
        return names
    return [names[round(at * (len(names) - 1) / (most - 1))] for at in range(most)]


def compare(got: Mapping[Place, torch.Tensor], want: Mapping[Place, torch.Tensor]) -> Judgement:
    """The relative Frobenius error of every delta in `want`; shapes may differ by axes of size one.

    A delta of zeros (a rotation in blocks of one row) is none that could be missed.
    """
    errors: dict[Place, float] = {}
    for where, expected in want.items():
        if where in got:
            error = (got[where].double().reshape(expected.shape) - expected).norm() / (expected.norm() or 1)
            errors[where] = float(error)
    missing = tuple(where for where, expected in want.items() if where not in got and bool(expected.any()))
    unexpected = tuple(where for where in got if where not in want)
    return Judgement(errors, missing, unexpected)
