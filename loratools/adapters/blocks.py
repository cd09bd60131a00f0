"""Block-diagonal layouts of low-rank factors: which columns of the fused output factor belong to which part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loratools.adapters.factors import Factors, refusal, same, spans, stack, whole
from loratools.tensors.lazy import LazyTensor, block_diagonal

Columns = tuple[int, int]


class Blocks(NamedTuple):
    """Columns [first, last) of every part (None where a part is missing), and the parts that brought each block.

    Parts whose input side is byte-identical stand in the same columns: all in one block is what sharing means.
    """

    columns: tuple[Columns | None, ...]
    owners: tuple[int, ...]
    width: int


def blocks(parts: Sequence[Factors | None], inputs: Sequence[str], *, share: bool = True) -> Blocks:
    """Place the parts in order; the extent of a block is the first dimension of `inputs[0]`."""
    owners: list[int] = []
    placed: dict[int, Columns] = {}
    columns: list[Columns | None] = []
    width = 0
    for index, part in enumerate(parts):
        if part is None:
            columns.append(None)
            continue
        owner = next((o for o in owners if share and same([parts[o] or {}, part], inputs)), None)
        if owner is None:
            owners.append(index)
            rank = part[inputs[0]].shape[0]
            placed[index] = (width, width + rank)
            owner, width = index, width + rank
        columns.append(placed[owner])
    return Blocks(tuple(columns), tuple(owners), width)


def output_side(
    kind: str, role: str, parts: Sequence[Factors | None], sizes: Sequence[int], place: Blocks
) -> LazyTensor:
    """[Σ sizes, width]: every part's output factor [size, rank] in its columns, zeros elsewhere."""
    model = next(part[role] for part in parts if part is not None)
    rows: list[LazyTensor] = []
    for part, size, columns in zip(parts, sizes, place.columns, strict=True):
        if part is None or columns is None:
            rows.append(LazyTensor.zeros(model.dtype, (size, place.width, *model.shape[2:])))
            continue
        tensor = part[role]
        whole(kind, tensor.shape[0], (size,))
        tail = model.shape[2:] if tensor.numel == tensor.shape[0] * tensor.shape[1] else tensor.shape[2:]
        tensor = tensor.reshape(*tensor.shape[:2], *tail)
        rows.append(tensor.pad_columns(columns[0], place.width - columns[1]))
    return stack(kind, rows)


def output_side_across(
    kind: str, role: str, parts: Sequence[Factors | None], sizes: Sequence[int], _: Blocks
) -> LazyTensor:
    """[width, Σ sizes]: the same for factors [rank, size], whose output axis is the second one."""
    total = sum(sizes)
    rows: list[LazyTensor] = []
    for part, (start, stop) in zip(parts, spans(sizes), strict=True):
        if part is not None:
            whole(kind, part[role].shape[1], (stop - start,))
            rows.append(part[role].pad_columns(start, total - stop))
    return stack(kind, rows)


def input_side(kind: str, role: str, parts: Sequence[Factors | None], place: Blocks) -> LazyTensor:
    """[width, …]: the input factors of the parts that own a block, stacked, in the shape of the first."""
    found = [part[role] for index in place.owners if (part := parts[index]) is not None]
    tail = found[0].shape[1:]
    stripped = [_without_ones(tensor.shape[1:]) for tensor in found]
    if any(shape != stripped[0] for shape in stripped):
        raise refusal(kind, "fuse_rows", f"the parts have inputs of different shapes: {[list(t.shape) for t in found]}")
    return stack(kind, [tensor.reshape(tensor.shape[0], *tail) for tensor in found])


def core(kind: str, role: str, parts: Sequence[Factors | None], place: Blocks) -> LazyTensor | None:
    """[width, width, kernel…]: Tucker cores along the diagonal; None where no part has one, refused where some have."""
    present = [part for part in parts if part is not None]
    having = [part for part in present if role in part]
    if not having:
        return None
    if len(having) < len(present):
        raise refusal(kind, "fuse_rows", "only some parts have a Tucker core", "collapse the core first")
    return block_diagonal([part[role] for index in place.owners if (part := parts[index]) is not None])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its trailing dimensions of 1: a 1×1 convolution is a linear layer."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
