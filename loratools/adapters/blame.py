"""Whose fault an error is: the file and the key of an adapter, put to errors raised where neither is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import load
from loratools.errors import NonFinite, NotRepresentable, UnsupportedFile

if TYPE_CHECKING:
    import torch


@contextmanager
def named(adapter: Adapter) -> Iterator[None]:
    """Put the file and the key of an adapter to a refusal, or to an error about its numbers, that has no key."""
    try:
        yield
    except (NotRepresentable, NonFinite, UnsupportedFile) as error:
        if adapter.origin and error.key is None:
            error.path, error.key = adapter.origin.file, adapter.origin.stem
        raise


def finite(values: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    """`values`, made of an adapter's factors; raises NonFinite with the key of the factor to blame."""
    import torch

    if bool(torch.isfinite(values).all()):
        return values
    for role, tensor in adapter.factors.items():
        if not bool(torch.isfinite(load(tensor, "float64")).all()):
            key = adapter.origin.keys.get(role) if adapter.origin else role
            break
    else:
        key = adapter.origin.stem if adapter.origin else adapter.target.name
    path = adapter.origin.file if adapter.origin else None
    raise NonFinite(f"{key} of {adapter.target.name} is not finite", path=path, key=key)
