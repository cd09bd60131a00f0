"""What loratools reads out of a file, as deltas by place: the reading under judgement, not a judge."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loratools.adapters.kind import bias_delta_of, delta_of
from tests.judges.fresh import fresh
from tests.judges.truth import Place, module_path


def deltas_as_read(
    adapters: Iterable[Any], pipeline_folder: Path
) -> tuple[dict[Place, torch.Tensor], dict[Place, torch.Tensor]]:
    """The float64 change of every weight and every bias, each part of a fused layer at its own place."""
    pipeline = fresh(pipeline_folder)
    deltas: dict[Place, torch.Tensor] = {}
    biases: dict[Place, torch.Tensor] = {}
    for item in adapters:
        target = item.target
        assert target.axis == "rows"
        model: nn.Module = getattr(pipeline, target.component)
        modules: list[Any] = [model.get_submodule(module_path(model, path)) for path in target.paths]
        weight = torch.cat([module.weight.detach().double() for module in modules])
        rows = [module.weight.shape[0] for module in modules]
        delta = delta_of(item, weight, dtype="float64")
        bias = bias_delta_of(item, _bias(modules), dtype="float64")
        for at, path in enumerate(target.paths):
            deltas[target.component, path] = delta.split(rows)[at]
            if bias is not None:
                biases[target.component, path] = bias.split(rows)[at]
    return deltas, biases


def _bias(modules: list[Any]) -> torch.Tensor | None:
    if any(module.bias is None for module in modules):
        return None
    return torch.cat([module.bias.detach().double() for module in modules])
