"""What the values say: NaN and infinity, dead modules, the norm and the spectrum of every delta, from the factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.kind import kind_of
from loratools.operations.working.side_by_side import side_by_side

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ModuleHealth:
    """One module: elements that are not finite, the norm of its delta, its largest singular values, effective rank."""

    module: str
    non_finite: int
    norm: float | None
    singular_values: tuple[float, ...]
    effective_rank: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "module": self.module,
            "non_finite": self.non_finite,
            "norm": self.norm,
            "singular_values": list(self.singular_values),
            "effective_rank": self.effective_rank,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """All modules, in file order."""

    modules: tuple[ModuleHealth, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: totals first."""
        measured = [item.norm for item in self.modules if item.norm is not None]
        return {
            "non_finite": sum(item.non_finite for item in self.modules),
            "dead": [item.module for item in self.modules if item.norm == 0],
            "norm": math.sqrt(math.fsum(norm * norm for norm in measured)),
            "not_measured": sum(item.norm is None for item in self.modules),
            "modules": [item.to_dict() for item in self.modules],
        }


def health(adapters: Sequence[Adapter], *, threads: int = 1) -> Health:
    """Read every factor once; singular values of low-rank kinds come from a QR core, never from a product."""
    return Health(tuple(side_by_side(_module, adapters, threads)))


def _module(item: Adapter) -> ModuleHealth:
    import torch

    with named(item):
        tensors = [tensor.load() for tensor in item.factors.values()]
    bad = sum(int((~torch.isfinite(tensor.float())).sum()) for tensor in tensors if tensor.is_floating_point())
    kind = kind_of(item.kind)
    if bad or item.kind != "lora" or kind.needs_base(item.factors):
        return ModuleHealth(item.target.name, bad, None, (), None)
    left, right = kind.low_rank(item.factors, "float64")  # type: ignore[attr-defined]  # LoRA's, not every kind's
    core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T
    values = torch.linalg.svdvals(core) * abs(float(item.scale))
    energy = values.square()
    total = float(energy.sum())
    if not total:
        return ModuleHealth(item.target.name, 0, 0.0, (), 0.0)
    share = energy[energy > 0] / total
    effective = float(torch.exp(-(share * share.log()).sum()))
    return ModuleHealth(item.target.name, 0, math.sqrt(total), tuple(values[:_SHOWN].tolist()), effective)
