"""Base models in memory, of the proportions that the tables have, in any naming."""

from __future__ import annotations

import torch

from loratools.bases.matching import native_shape

SMALL = 16


def shrunk(shape, by=SMALL):
    """A shape of the same proportions and layout, few elements."""
    return tuple(max(1, extent // by) if extent > 16 else extent for extent in shape)


def canonical(table, seed=0):
    """path → (weight, bias) of every canonical path of a component."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: (torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator))
        for path, shape in table.items()
    }


def spelt(naming, table, values, prefix=""):
    """The tensors of a file that spells the component so: fused, swapped or turned as the naming says."""
    held = {}
    for placement in naming.placements():
        if native_shape(placement, table) is None:
            continue
        placement = placement.settled(table[placement.paths[0]])  # noqa: PLW2901 - as it is laid out at this size
        weight = torch.cat([values[path][0] for path in placement.paths])
        bias = torch.cat([values[path][1] for path in placement.paths])
        if placement.layout == "transpose":
            weight = weight.T.contiguous()
        if placement.layout == "swap_halves":
            weight, bias = (torch.cat(part.chunk(2)[::-1]) for part in (weight, bias))
        held[prefix + placement.weight_key] = weight
        if placement.bias_key and weight.ndim > 1:
            held[prefix + placement.bias_key] = bias
    return held
