"""What may be printed: names from files shown as text, and when a stream takes colour."""

from __future__ import annotations

import os
import unicodedata
from typing import TextIO

# Control, format (bidi marks, zero-width joiners), surrogate, and line and paragraph separators.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""`text` with everything that could steer a terminal, or hide, spelt out: ESC becomes `\x1b`, U+202E `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(character) if unicodedata.category(character) in HIDDEN else character for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches `stream` on a terminal that can move its cursor."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in {"dumb", "unknown"}


def takes_colour(stream: TextIO | None) -> bool:
    """Whether `stream` may carry ANSI styles: a terminal, and no NO_COLOR."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def human_bytes(count: int) -> str:
    """A size in decimal units: 1,234 B, 56.9 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `2,958 tensors`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
