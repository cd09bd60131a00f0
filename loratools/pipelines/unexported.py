"""Model classes that diffusers writes into `model_index.json` and does not find again: it exports them no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

HOMES = {"WuerstchenPrior": "diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior"}
"""Class → the module of diffusers 0.42 that holds it."""


@contextmanager
def exported() -> Iterator[None]:
    """Within the block diffusers finds these classes where its own index says they are."""
    import diffusers

    missing = [name for name in HOMES if not hasattr(diffusers, name)]
    for name in missing:
        setattr(diffusers, name, getattr(import_module(HOMES[name]), name))
    try:
        yield
    finally:
        for name in missing:
            delattr(diffusers, name)
