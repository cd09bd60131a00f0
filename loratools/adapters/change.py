"""What adapters add to one tensor of a base model, as matrices in the layout of its file: low-rank pairs, or dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.dora import is_dora
from loratools.adapters.kind import bias_delta_of, delta_of, strength_of
from loratools.adapters.lora import LORA
from loratools.adapters.residual import RESIDUAL

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter adds to stacked rows: the rows [start, stop) of its delta, times `scale`, from row `at` on.

    `base` makes the weight (or the bias) of the adapter's whole target, for kinds whose delta depends on it. `inputs`
    are the input channels of the adapter where the weight has more of them: it changes the first ones.
    """

    adapter: Adapter
    scale: float
    start: int
    stop: int
    at: int
    base: Callable[[], torch.Tensor | None]
    inputs: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """The tensor of a file as a matrix [rows, columns]; `layout` is how it lays the stacked canonical rows out ("rows",
    "swap_halves", "transpose"). A bias is [out, 1].
    """

    rows: int
    columns: int
    layout: str = "rows"
    bias: bool = False

    @property
    def canonical(self) -> tuple[int, int]:
        """(rows, columns) of the stacked canonical matrix."""
        return (self.columns, self.rows) if self.layout == "transpose" else (self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class Pair:
    """The product left [rows, r] · right [r, columns] that is added from row `at` of the file's tensor on."""

    at: int
    left: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True, slots=True)
class Prepared:
    """The low-rank pairs in float64 and in float32, and the dense change [rows, columns] in float64."""

    exact: tuple[Pair, ...]
    single: tuple[Pair, ...]
    dense: torch.Tensor | None


def is_low_rank(adapter: Adapter) -> bool:
    """Whether the delta is the product of two factors and nothing else."""
    return adapter.kind == LORA.name and not is_dora(adapter.factors) and RESIDUAL not in adapter.factors


def prepare(changes: Sequence[Change], frame: Frame, device: str) -> Prepared:
    """The matrices of all changes, on `device`; raises what the arithmetic of their kinds raises, with file and key."""
    pairs: list[Pair] = []
    dense: torch.Tensor | None = None
    for change in changes:
        with named(change.adapter):
            if not frame.bias and is_low_rank(change.adapter):
                pairs.append(_pair(change, frame, device))
                continue
            made = _dense(change, frame)
            dense = made if dense is None else dense.add_(made)
    exact = tuple(_joined(pairs))
    single = tuple(Pair(pair.at, pair.left.float(), pair.right.float()) for pair in exact)
    return Prepared(exact, single, None if dense is None else dense.to(device))


def _pair(change: Change, frame: Frame, device: str) -> Pair:
    """The pair in the file's layout."""
    import torch

    left, right = LORA.low_rank(change.adapter.factors, "float64")
    left = left[change.start : change.stop] * (float(strength_of(change.adapter)) * change.scale)
    left, right = left.to(device), _widened(right, change, frame).to(device)
    if frame.layout == "rows":
        return Pair(change.at, left.contiguous(), right.contiguous())
    stacked = frame.canonical[0]
    whole = torch.zeros(stacked, left.shape[1], dtype=left.dtype, device=left.device)
    whole[change.at : change.at + len(left)] = left
    if frame.layout == "transpose":
        return Pair(0, right.T.contiguous(), whole.T.contiguous())
    half = stacked // 2
    return Pair(0, torch.cat([whole[half:], whole[:half]]), right.contiguous())


def _dense(change: Change, frame: Frame) -> torch.Tensor:
    """The change in the file's layout as [rows, columns], zero where it has none."""
    import torch

    base = change.base()
    if frame.bias:
        found = bias_delta_of(change.adapter, base, dtype="float64")
        assert found is not None
        delta = found.reshape(-1, 1)
    else:
        delta = delta_of(change.adapter, base, dtype="float64")
        delta = _widened(delta.reshape(len(delta), -1), change, frame)
    whole = delta[change.start : change.stop] * change.scale
    del delta, base  # each may be as large as the layer
    rows, columns = frame.canonical
    if whole.shape != (rows, columns):
        part, whole = whole, torch.zeros(rows, columns, dtype=whole.dtype)
        whole[change.at : change.at + len(part)] = part
    if frame.layout == "transpose":
        return whole.T.contiguous()
    if frame.layout == "swap_halves":
        return torch.cat([whole[rows // 2 :], whole[: rows // 2]])
    return whole


def _widened(rows: torch.Tensor, change: Change, frame: Frame) -> torch.Tensor:
    """Rows over an adapter's inputs as rows over the weight's, which may have more channels: zero there."""
    import torch

    if change.inputs is None:
        return rows
    kernel = rows.shape[1] // change.inputs
    beyond = frame.canonical[1] - change.inputs * kernel
    return torch.cat([rows, torch.zeros(len(rows), beyond, dtype=rows.dtype)], 1)


def _joined(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs over the same rows as one product."""
    import torch

    by_rows: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        by_rows.setdefault((pair.at, len(pair.left)), []).append(pair)
    return [
        group[0]
        if len(group) == 1
        else Pair(at, torch.cat([pair.left for pair in group], 1), torch.cat([pair.right for pair in group], 0))
        for (at, _), group in by_rows.items()
    ]
