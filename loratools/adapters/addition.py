"""W + Σ scale·Δ of one tensor of a base model, made in blocks of rows: summed in float32, cast once, and measured.

Low-rank adapters are multiplied block by block, so that a block stays in the processor's cache and a delta is never
formed whole. Where weight and change nearly cancel, float32 would leave too few digits for a 16-bit result: those few
elements are computed again in float64. Other kinds form their delta once for all blocks, in float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratools.adapters.casting import Dice, cast, largest
from loratools.adapters.change import Change, Frame, Pair, Prepared, is_low_rank, prepare
from loratools.adapters.factors import torch_dtype
from loratools.adapters.faults import Faults
from loratools.errors import NonFinite
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor, tensor_bytes
from loratools.tensors.segments import Computed

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 18
"""Elements of a block on a CPU: its float32 working set of a few MiB stays near the processor."""
BLOCK_ON_DEVICE = 1 << 25
CANCELLED = 2.0**-9
"""A sum smaller than this share of the weight has lost more digits than float32 has beyond those of a 16-bit float."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Squared norms over all elements: of the weight, of the change, and of what rounding took of it.

    `wild` elements of the result are NaN or infinite, as the inputs were; `cut` ones lay beyond an 8-bit range.
    """

    weight: float
    change: float
    lost: float
    wild: int = 0
    cut: int = 0

    @property
    def ratio(self) -> float:
        """‖Δ‖ / ‖W‖."""
        return math.sqrt(self.change / self.weight) if self.weight else math.inf if self.change else 0.0

    @property
    def error(self) -> float:
        """‖W' − (W + Δ)‖ / ‖Δ‖: how much of the change the dtype could not hold; 0 where there is no change."""
        return math.sqrt(self.lost / self.change) if self.change else 0.0


@dataclass(frozen=True, slots=True)
class How:
    """How sums are made: in which dtype (None: the tensor's own), by which dice, where, and whether NaN may pass."""

    dtype: str | None = None
    dice: Dice | None = None
    device: str = "cpu"
    allow_nonfinite: bool = False


class Addition:
    """One tensor of a file, named `name`, and the changes to it; `layout` and `bias` as for `Frame`.

    `unit` holds what an 8-bit tensor is multiplied by when it is read, one number or one for each row; the result then
    has others, see `unit`.
    """

    def __init__(
        self,
        tensor: LazyTensor,
        changes: Sequence[Change],
        how: How,
        *,
        name: str,
        layout: str = "rows",
        bias: bool = False,
        unit: LazyTensor | None = None,
    ) -> None:
        self.tensor, self.changes, self.how, self.name = tensor, tuple(changes), how, name
        self.dtype = how.dtype or tensor.dtype
        rows = tensor.shape[0] if tensor.shape else 1
        kept = "rows" if bias and layout == "transpose" else layout
        self.frame = Frame(rows, tensor.numel // rows if rows else 0, kept, bias)
        self._unit = unit
        self.requantised = unit is not None and DTYPES[self.dtype].bits == 8
        self._new_unit: torch.Tensor | None = None
        self._lock = threading.RLock()
        self._prepared: Prepared | None = None
        self._left = 0
        self._found: dict[int, Measure] = {}
        self._faults = Faults(name, self.dtype, self.changes, allowed=how.allow_nonfinite)

    def result(self) -> LazyTensor:
        """The sum, in the tensor's shape, as a lazy tensor of one computed segment for each block."""
        spans = self._spans()
        width = LazyTensor.zeros(self.dtype, (self.frame.columns,)).nbytes
        self._left = len(spans)
        segments = tuple(Computed((stop - start) * width, self._maker(start, stop)) for start, stop in spans)
        return LazyTensor(self.dtype, self.tensor.shape, segments)

    def unit(self) -> LazyTensor:
        """What the result is to be multiplied by when it is read, in the dtype and shape of the old one."""
        assert self._unit is not None
        old = self._unit
        return LazyTensor.computed(
            old.dtype, old.shape, lambda: self._scale().to(torch_dtype(old.dtype)).reshape(old.shape).cpu()
        )

    @property
    def dense_bytes(self) -> int:
        """The bytes of a dense change of the whole tensor in float64; 0 where all are low-rank."""
        dense = any(self.frame.bias or not is_low_rank(change.adapter) for change in self.changes)
        return 8 * self.tensor.numel if dense else 0

    def measure(self) -> Measure:
        """The norms over all blocks that have been made."""
        found = [self._found[start] for start in sorted(self._found)]
        return Measure(
            math.fsum(item.weight for item in found),
            math.fsum(item.change for item in found),
            math.fsum(item.lost for item in found),
            sum(item.wild for item in found),
            sum(item.cut for item in found),
        )

    def _spans(self) -> list[tuple[int, int]]:
        size = BLOCK if self.how.device == "cpu" else BLOCK_ON_DEVICE
        step = max(1, size // max(1, self.frame.columns))
        return [(start, min(start + step, self.frame.rows)) for start in range(0, self.frame.rows, step)]

    def _maker(self, start: int, stop: int) -> Callable[[], bytes]:
        return lambda: self._block(start, stop)

    def _block(self, start: int, stop: int) -> bytes:
        """The bytes of some rows, and their measure."""
        weight, total, change = self._sum(start, stop)
        scale = _rows(self._scale(), start, stop).to(total) if self.requantised else None
        made = cast(total if scale is None else total / scale, self.dtype, self.how.dice, self.name, start)
        lost, wild, cut = 0.0, 0, 0
        if made.dtype != total.dtype:
            back = _scratch(2, total).copy_(made)
            lost = _square((back if scale is None else back.mul_(scale)).sub_(total))
            if made.element_size() == 1 and scale is None:
                cut = int((total.abs() > largest(self.dtype)).sum())
        norm = _square(weight)
        if not math.isfinite(norm + change + lost):
            wild = self._faults.judge(weight, total, made)
        self._found[start] = Measure(norm, change, lost, wild, cut)
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self._prepared, self._left = None, len(self._spans())
        return tensor_bytes(made.cpu(), self.dtype)

    def _sum(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Rows of the base, of the sum, and the squared norm of the change between them; in this thread's scratch."""
        if not self.changes:
            weight = self._weight(start, stop)
            return weight, weight, 0.0
        with self._lock:
            if self._prepared is None:
                self._prepared = prepare(self.changes, self.frame, self.how.device)
            prepared = self._prepared
        weight = self._weight(start, stop, wide=prepared.dense is not None)
        delta = _delta(prepared, start, stop, weight, _scratch(1, weight))
        change = _square(delta)
        total = delta.add_(weight)
        if prepared.dense is None and DTYPES[self.dtype].bits == 16:
            _recompute(total, weight, prepared.exact, start)
        return weight, total, change

    def _weight(self, start: int, stop: int, *, wide: bool = False) -> torch.Tensor:
        """Rows of the base as [rows, columns], in float32; in float64 where they are stored so, or `wide` is asked."""
        import torch

        rows = self.tensor.reshape(self.frame.rows, self.frame.columns).rows(start, stop).load(_room())
        working = torch.float64 if wide or rows.dtype == torch.float64 else torch.float32
        weight = _scratch(0, rows.to(self.how.device), working).copy_(rows)
        return weight if self._unit is None else weight * _rows(self._old_unit(), start, stop).to(weight)

    def _old_unit(self) -> torch.Tensor:
        """The unit of the file as float32 [rows, 1], or [1, 1]; raises NonFinite."""
        import torch

        assert self._unit is not None
        found = self._unit.load().float().reshape(-1, 1)
        if not bool(torch.isfinite(found).all()):
            raise NonFinite(f"the scale of {self.name} is not finite", key=self.name)
        return found

    def _scale(self) -> torch.Tensor:
        """The new unit: the one that uses the whole range of the dtype, which takes a look at every block first."""
        import torch

        with self._lock:
            if self._new_unit is None:
                assert self._unit is not None
                old = self._old_unit()
                peaks = torch.cat([self._sum(start, stop)[1].abs().amax(1).cpu() for start, stop in self._spans()])
                peak = (peaks if len(old) > 1 else peaks.amax().reshape(1)).reshape(-1, 1).float()
                wanted = torch.where(peak > 0, peak / largest(self.dtype), old)
                self._new_unit = _rounded_up(wanted, self._unit.dtype)
            return self._new_unit


def _delta(prepared: Prepared, start: int, stop: int, weight: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """The sum of all changes to the rows [start, stop), in `room`, in the dtype of `weight`."""
    import torch

    delta = None if prepared.dense is None else room.copy_(prepared.dense[start:stop])
    for pair in prepared.exact if weight.dtype == torch.float64 else prepared.single:
        first, last = max(start, pair.at), min(stop, pair.at + len(pair.left))
        if first >= last:
            continue
        rows = pair.left[first - pair.at : last - pair.at]
        if delta is None and (first, last) == (start, stop):
            delta = torch.mm(rows, pair.right, out=room)
            continue
        if delta is None:
            delta = room.zero_()
        delta[first - start : last - start].addmm_(rows, pair.right)
    return room.zero_() if delta is None else delta


def _recompute(total: torch.Tensor, weight: torch.Tensor, pairs: Sequence[Pair], start: int) -> None:
    """Put the float64 sum where weight and change nearly cancel."""
    import torch

    low = torch.div(total, weight, out=_scratch(2, total)).abs_().amin(1)
    suspects = torch.nonzero(~(low >= CANCELLED)).flatten()  # few rows; those with 0 / 0 among them
    if not len(suspects):
        return
    found, columns = torch.nonzero(total[suspects].abs() < weight[suspects].abs() * CANCELLED, as_tuple=True)
    if not len(found):
        return
    rows = suspects[found]
    exact = weight[rows, columns].double()
    for pair in pairs:
        inside = (rows + start >= pair.at) & (rows + start < pair.at + len(pair.left))
        ours = (rows + start - pair.at)[inside]
        exact[inside] += (pair.left[ours] * pair.right[:, columns[inside]].T).sum(1)
    total[rows, columns] = exact.to(total.dtype)


def _rows(unit: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The units of some rows, or the one of all."""
    return unit[start:stop] if len(unit) > 1 else unit


def _rounded_up(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Numbers of a dtype that are not below `values`, as float32: nothing may lie beyond the range by rounding."""
    import torch

    kept = values.to(torch_dtype(dtype)).float()
    return torch.where(kept >= values, kept, kept * (1 + 2 * torch.finfo(torch_dtype(dtype)).eps))


_SCRATCH = threading.local()


def _scratch(number: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Memory of this thread in the shape of `like`, used over and over: fresh pages would cost more than the sums."""
    import torch

    wanted = dtype or like.dtype
    name = f"{number} {wanted} {like.device}"
    found: torch.Tensor | None = getattr(_SCRATCH, name, None)
    if found is None or found.numel() < like.numel():
        found = torch.empty(like.numel(), dtype=wanted, device=like.device)
        setattr(_SCRATCH, name, found)
    return found[: like.numel()].view(like.shape)


def _room() -> bytearray:
    """Bytes of this thread that rows are read into, before they become float32."""
    found: bytearray | None = getattr(_SCRATCH, "room", None)
    if found is None:
        found = _SCRATCH.room = bytearray(8 * BLOCK)
    return found


def _square(values: torch.Tensor) -> float:
    """The sum of squares of a block."""
    flat = values.reshape(-1)
    return float(flat.dot(flat))
