"""Random adapters, and their deltas by a plain float64 sum that knows nothing of the library's own arithmetic."""

from __future__ import annotations

from fractions import Fraction

import torch

from loratools.adapters.adapter import Adapter, Origin
from loratools.adapters.kind import kind_of
from loratools.model import Alpha, Target
from loratools.tensors.lazy import LazyTensor, tensor_bytes

NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def lazy(tensor: torch.Tensor) -> LazyTensor:
    """A tensor as bytes in memory."""
    name = NAMES.get(str(tensor.dtype).removeprefix("torch."), "I64")
    return LazyTensor.from_bytes(name, tuple(tensor.shape), tensor_bytes(tensor, name))


def values(seed: int, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Normal numbers, none of them zero."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (numbers + 0.01 * numbers.sign()).to(dtype)


def adapter(paths, factors, kind="lora", *, alpha: Fraction | int | None = None, ratio=None) -> Adapter:
    """An adapter over `paths` with torch factors."""
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    target = Target("unet", paths, ratio or (1,) * len(paths))
    held = {role: tensor if isinstance(tensor, LazyTensor) else lazy(tensor) for role, tensor in factors.items()}
    stated = Alpha(None if alpha is None else Fraction(alpha), "tensor")
    stem = "_".join(paths)
    return Adapter(target, kind, held, stated, Origin("made.safetensors", stem, {r: f"{stem}.{r}" for r in held}, {}))


def lora(paths, seed=0, *, rows=6, columns=5, rank=2, alpha=None, ratio=None, dtype=torch.float16, **more) -> Adapter:
    """A LoRA of one or several layers."""
    factors = {"down": values(seed, rank, columns, dtype=dtype), "up": values(seed + 1, rows, rank, dtype=dtype)}
    return adapter(paths, {**factors, **more}, alpha=alpha, ratio=ratio)


def made(kind: str, seed: int = 0, *, rows: int = 12, columns: int = 6, rank: int = 2, form: str = "") -> dict:
    """Torch factors of every kind for a weight [rows, columns], [rows, columns, 3, 3] with form "conv" or "tucker"."""
    kernel = (3, 3) if form in ("conv", "tucker") else ()
    ones = (1,) * len(kernel)
    flat, half = columns * (9 if kernel else 1), columns // 2
    output, inputs = (rows, rank), (rank, flat)
    core = (rank, rank, 3, 3)
    shapes = {
        ("lora", "tucker"): {"down": (rank, columns, 1, 1), "up": (rows, rank, 1, 1), "mid": core},
        ("lora", ""): {"down": (rank, columns, *kernel), "up": (rows, rank, *ones)},
        ("loha", "tucker"): {
            "w1_a": (rank, rows),
            "w1_b": (rank, columns),
            "t1": core,
            "w2_a": (rank, rows),
            "w2_b": (rank, columns),
            "t2": core,
        },
        ("loha", ""): {"w1_a": output, "w1_b": inputs, "w2_a": output, "w2_b": inputs},
        ("lokr", "whole"): {"w1": (rows // 2, 2), "w2": (2, half)},
        ("lokr", "both"): {"w1_a": (rows // 2, rank), "w1_b": (rank, 2), "w2_a": (2, rank), "w2_b": (rank, half)},
        ("lokr", "tucker"): {"w1": (rows // 2, 2), "w2_a": (rank, 2), "w2_b": (rank, half), "t2": core},
        ("lokr", ""): {"w1": (rows // 2, 2), "w2_a": (2, rank), "w2_b": (rank, flat // 2)},
        ("full", ""): {"diff": (rows, columns, *kernel), "bias_diff": (rows,)},
        ("norm", ""): {"norm_diff": (rows,), "norm_bias_diff": (rows,)},
        ("ia3", ""): {"scale_vector": (columns if form == "input" else rows,)},
        ("glora", ""): {"a1": (columns, rank), "a2": (rank, columns), "b1": output, "b2": inputs},
        ("oft", ""): {"blocks": (rows // 2, 2, 2), "rescale": (rows, 1)},
        ("boft", ""): {"blocks": (2, rows // 6, 6, 6), "rescale": (rows, 1)},
    }
    roles = shapes.get((kind, form)) or shapes[kind, ""]
    factors = {
        role: values(seed * 100 + at, *shape, dtype=torch.float32) for at, (role, shape) in enumerate(roles.items())
    }
    return {**factors, "on_input": torch.tensor(int(form == "input"))} if kind == "ia3" else factors


def lazily(factors: dict) -> dict:
    """Torch factors as lazy ones."""
    return {role: lazy(tensor) for role, tensor in factors.items()}


def dense(item: Adapter) -> torch.Tensor:
    """scale · up · down as a float64 sum over the rank, by hand."""
    down, up = (item.factors[role].load().double().flatten(1) for role in ("down", "up"))
    total = torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64)
    for column in range(down.shape[0]):
        total += up[:, column, None] * down[None, column]
    rank = down.shape[0]
    value = item.alpha.value
    if value is None:
        return total
    return total * (float(value) / (rank**0.5 if item.alpha.rank_stabilized else rank))


def dense_by_path(adapters) -> dict[str, torch.Tensor]:
    """Every path's rows of the dense deltas."""
    found = {}
    for item in adapters:
        rows = kind_of(item.kind).weight_shape(item.factors)[0]
        found |= dict(zip(item.target.paths, dense(item).split(item.target.sizes(rows)), strict=True))
    return found


def same_bytes(ours: Adapter, theirs: Adapter) -> bool:
    """Equal roles and bytes."""
    return ours.factors.keys() == theirs.factors.keys() and all(
        tensor.same_bytes(theirs.factors[role]) for role, tensor in ours.factors.items()
    )
