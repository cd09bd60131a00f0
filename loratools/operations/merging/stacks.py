"""Merged tensors by their places: of a stacked parameter the experts are summed one by one and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loratools.adapters.addition import Addition, How
from loratools.bases.native import Native, Place
from loratools.bases.placing import Placing, Touched
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor, stack_rows


def results(placing: Placing, additions: Mapping[Place, tuple[Touched, Addition]], how: How) -> dict[Place, LazyTensor]:
    """The sum of every tensor that changes, by its source and key."""
    found: dict[Place, LazyTensor] = {}
    for touched, addition in additions.values():
        native = touched.native
        place = id(native.source), native.key
        if native.part is None:
            found[place] = addition.result()
        elif place not in found:
            found[place] = _stack(placing.experts(native), additions, how).reshape(*native.source[native.key].shape)
    return found


def _stack(experts: list[Native], additions: Mapping[Place, tuple[Touched, Addition]], how: How) -> LazyTensor:
    """All experts one under another: the sum where something changes one, else its own bytes, or its cast."""
    pieces = []
    for native in experts:
        known = additions.get(native.place)
        if known is not None:
            pieces.append(known[1].result())
            continue
        cast = how.dtype is not None and how.dtype != native.tensor.dtype and DTYPES[how.dtype].bits > 8
        rest = Addition(native.tensor, (), replace(how, dtype=how.dtype if cast else None), name=native.key)
        pieces.append(rest.result() if cast else native.tensor)
    return stack_rows(pieces)
