"""Memory kept for the moment when there is no more: to unwind, and to say so in words, take some themselves."""

from __future__ import annotations

SIZE = 16 << 20
"""Bytes; never touched, so that they are room in the address space and no memory."""

_kept: list[bytearray] = []


def keep() -> None:
    """Set some aside, for a process that is a command's alone."""
    _kept.append(bytearray(SIZE))


def let_go() -> None:
    """Give it back, at the first allocation that fails."""
    _kept.clear()
