"""Letters in pictures: a font of a size that has the signs, and text folded to a width."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

# Where Pillow's own font lacks a sign: names that it finds in the system's font folders, where they are installed.
_WIDER = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf")
_NOWHERE = "\U0010fffe"  # no font has a sign for a noncharacter


def font_for(text: str, size: int) -> FreeTypeFont | ImageFont:
    """Pillow's built-in font, or the first of the system's that can draw what it cannot; the built-in where none can.

    A picture's bytes depend on the system's fonts only where its text needs them.
    """
    built_in = _built_in(size)
    strange = [letter for letter in dict.fromkeys(text) if not letter.isascii()]
    if not strange or _draws(built_in, strange):
        return built_in
    candidates = (font for name in _WIDER if (font := _system(name, size)) is not None)
    return next((font for font in candidates if _draws(font, strange)), built_in)


@lru_cache(maxsize=16)
def _built_in(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _system(name: str, size: int) -> FreeTypeFont | None:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(name, size)
    except OSError:  # not installed here
        return None


def _draws(font: Any, letters: list[str]) -> bool:
    """Whether a font has a sign of its own for each letter."""
    nothing = bytes(font.getmask(_NOWHERE))
    return all(letter.isspace() or bytes(font.getmask(letter)) != nothing for letter in letters)


def folded(text: str, font: Any, width: int, most: int | None = None) -> list[str]:
    """Lines no wider than `width` pixels; words that are wider are cut. Past `most` lines an ellipsis ends the last."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            line = word
            while font.getlength(line) > width and len(line) > 1:
                cut = _fits(line, font, width)
                lines.append(line[:cut])
                line = line[cut:]
        lines.append(line)
    if most is None or len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + " …") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + " …"]


def _fits(word: str, font: Any, width: int) -> int:
    """How many letters of a word fit: at least one."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(word[:middle]) <= width else (low, middle - 1)
    return low
