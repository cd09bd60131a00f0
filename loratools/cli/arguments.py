"""Arguments that several commands take apart in the same way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loratools.errors import UsageError

if TYPE_CHECKING:
    import click

SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def given(value: str | None, name: str) -> str:
    """A positional argument that kohya's words may have stood for; raises UsageError where nothing did."""
    if not value:
        import click

        raise UsageError(f"{name} is missing", hint=f"see {click.get_current_context().command_path} --help")
    return value


def size(_context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """`5GB` → 5,000,000,000: decimal units, binary ones with an i, bytes without any."""
    if value is None:
        return None
    text = value.strip().lower()
    unit = next((name for name in sorted(SIZES, key=len, reverse=True) if text.endswith(name)), "")
    try:
        number = float(text.removesuffix(unit)) * SIZES.get(unit, 1)
    except ValueError:
        number = math.nan
    if not number >= 1 or math.isinf(number):
        raise UsageError(f"{parameter.opts[0]}: {value!r} is no size", hint="for example 500MB or 5GB")
    return int(number)


def paired(models: tuple[str, ...], ratios: tuple[float, ...], words: tuple[str, ...]) -> list[tuple[str, float]]:
    """The adapters of sd-scripts' --models and --ratios, each of which takes several words: those after the first
    arrive as plain arguments.
    """
    names = [*models, *(word for word in words if not _is_number(word))]
    scales = [*ratios, *(float(word) for word in words if _is_number(word))]
    if scales and len(scales) != len(names):
        raise UsageError(f"{len(names)} models and {len(scales)} ratios", hint="one ratio for each model")
    return list(zip(names, scales or [1.0] * len(names), strict=True))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
