"""Whose fault an error is: the file and the key of an adapter, put to errors raised where neither is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loratools.adapters.adapter import Adapter
from loratools.errors import NonFinite, NotRepresentable, UnsupportedFile


@contextmanager
def named(adapter: Adapter) -> Iterator[None]:
    """Put the file and the key of an adapter to a refusal, or to an error about its numbers, that has no key."""
    try:
        yield
    except (NotRepresentable, NonFinite, UnsupportedFile) as error:
        if adapter.origin and error.key is None:
            error.path, error.key = adapter.origin.file, adapter.origin.stem
        raise
