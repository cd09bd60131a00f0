"""Undoing a block-diagonal fuse: which rank columns belong to which part, by record or by the zeros in the bytes."""

from __future__ import annotations

from collections.abc import Sequence

from loratools.adapters.blocks import Columns
from loratools.adapters.factors import spans
from loratools.tensors.dtypes import nbytes
from loratools.tensors.lazy import LazyTensor

PROBE = 8


def owned_columns(up: LazyTensor, sizes: Sequence[int]) -> list[Columns | None] | None:
    """For each part of `sizes` rows the columns [first, last) that are non-zero in it and nowhere else.

    None where the columns are not such blocks: where one is non-zero in two parts, or zero in all (untrained or dead:
    nobody guesses), or where a part's columns do not lie together. A part without a column is all zero.
    """
    rank = up.shape[1]
    owner: list[int | None] = [None] * rank
    # A few rows of every part are enough to see that a plain adapter is no block layout.
    for cut in (PROBE, None):
        for part, (start, stop) in enumerate(spans(sizes)):
            rows = up.rows(start, stop if cut is None else min(stop, start + cut))
            for column in _live(rows, [at for at in range(rank) if owner[at] != part]):
                if owner[column] not in (None, part):
                    return None
                owner[column] = part
    if None in owner:
        return None
    found: list[Columns | None] = []
    for part in range(len(sizes)):
        columns = [at for at in range(rank) if owner[at] == part]
        if columns and columns[-1] - columns[0] + 1 != len(columns):
            return None
        found.append((columns[0], columns[-1] + 1) if columns else None)
    return found


def only_these_columns(up: LazyTensor, columns: Columns | None) -> bool:
    """Whether every byte outside `columns` is zero (a record may be older than the file's last change)."""
    if columns is None:
        return zero_bytes(up)
    first, last = columns
    sides = [span for span in ((0, first), (last, up.shape[1])) if span[0] < span[1]]
    return all(zero_bytes(up.columns(*span)) for span in sides)


def zero_bytes(tensor: LazyTensor) -> bool:
    """Whether every byte is zero (a negative zero counts as something)."""
    return all(chunk == bytes(len(chunk)) for chunk in tensor.chunks())


def _live(rows: LazyTensor, columns: Sequence[int]) -> list[int]:
    """Those of `columns` that have a byte that is not zero.

    Runs of columns are tried whole first: in a block layout they are all zero, and one look is enough. Else strided
    slices of bytes are fast enough without numpy.
    """
    data, width, item = rows.tobytes(), rows.row_bytes, nbytes(rows.dtype, rows.shape[2:])
    held = LazyTensor.from_bytes(rows.dtype, rows.shape, data)
    zeros = bytes(len(data) // width)
    found: list[int] = []
    for first, last in _runs(columns):
        if zero_bytes(held.columns(first, last)):
            continue
        for column in range(first, last):
            places = range((column + 1) * item - 1, column * item - 1, -1)
            if any(data[byte::width] != zeros for byte in places):
                found.append(column)
    return found


def _runs(columns: Sequence[int]) -> list[Columns]:
    """Ascending columns as runs [first, last)."""
    runs: list[Columns] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs
