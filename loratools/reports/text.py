"""How numbers and names are written in pictures and pages: short figures, and text that cannot hide anything."""

from __future__ import annotations

import math
import unicodedata

from loratools.reports.evidence import Figure

# Controls, format characters (bidirectional overrides among them) and lone surrogates: shown as what they are.
_HIDDEN = frozenset({"Cc", "Cf", "Cs"})
_KEPT = frozenset("\n\u200c\u200d")  # line ends, and the joiners that emoji and several scripts are written with

WORDS = {
    "pass": "pass",
    "fail": "fail",
    "inconclusive": "inconclusive",
    "refused": "refused",
    "differs": "differs",
    "info": "shown",
    "caught": "caught",
    "missed": "missed",
}
MARKS = {
    "pass": "✓",
    "fail": "✗",
    "inconclusive": "?",
    "refused": "⊘",
    "differs": "≠",
    "info": "·",
    "caught": "✓",
    "missed": "✗",
}


def shown(text: object) -> str:
    """Text with every character that could hide or reorder others written as its escape."""
    word = str(text)
    if word.isascii() and word.isprintable():
        return word
    return "".join(
        character.encode("unicode_escape", "surrogatepass").decode("ascii")
        if unicodedata.category(character) in _HIDDEN and character not in _KEPT
        else character
        for character in word
    )


def number(value: float | None, unit: str = "") -> str:
    """A figure in three digits: 0, 1.24e-6, 0.998, 63.1 dB; in more where three would say 1; a dash for none."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        word = "0"
    elif float(value).is_integer() and abs(value) < 1e6:
        word = f"{value:.0f}"
    elif 1e-3 <= abs(value) < 1e6:
        word = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        if word == "1":  # a similarity of 0.9996 is not one of 1: towards zero, so that no digit claims too much
            word = f"{math.trunc(value * 1e6) / 1e6:.7g}"
    else:
        digits, _, power = f"{value:.2e}".partition("e")
        word = f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{word} {unit}" if unit and unit != "×" else word + unit


def spoken(figure: Figure) -> str:
    """A figure in one line: its name, its value and what it is held to."""
    if figure.value is None:
        return f"{figure.name}: not measured"
    held = beside(figure)
    return f"{figure.name} {number(figure.value, figure.unit)}" + (f" ({held})" if held else "")


def beside(figure: Figure) -> str:
    """What a figure is held to: `limit 1e-5, noise 3e-7`; empty where there is neither."""
    parts = []
    if figure.limit is not None:
        word = "limit" if figure.better == "low" else "at least"
        parts.append(f"{word} {number(figure.limit)}")
    if figure.floor is not None:
        parts.append(f"noise {number(figure.floor)}")
    return " · ".join(parts)


def cut(text: str, most: int) -> str:
    """A text of at most `most` letters; an ellipsis stands for what was cut."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
