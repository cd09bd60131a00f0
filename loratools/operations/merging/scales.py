"""How strongly adapters are merged where: one number, or numbers by component, by pattern or by block."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from loratools.architectures.architecture import Architecture
from loratools.architectures.block_weights import block_of, block_weights
from loratools.errors import UsageError, nearest

Weighing = Callable[[str, str], float]
"""(component, canonical path) → the number that multiplies a change there."""


def weighted(argument: str) -> tuple[str, float]:
    """`LORA=0.8` → ("LORA", 0.8), cut at the last `=` whose right side is a number; 1 where there is none, and where
    the whole argument is an existing path.
    """
    reference, equals, number = argument.rpartition("=")
    if not equals or not reference or os.path.lexists(argument):
        return argument, 1.0
    try:
        value = float(number)
    except ValueError:
        return argument, 1.0
    if not math.isfinite(value):
        raise UsageError(f"{argument!r}: the scale is no finite number", hint=f"for example {reference}=0.8")
    return reference, value


@dataclass(frozen=True)
class Scales:
    """What multiplies every adapter: `overall`, a number by component, and the last pattern that fits a layer.

    A pattern is matched against `component.path`, as a shell matches names, or is found by the component alone.
    """

    overall: float = 1.0
    components: Mapping[str, float] = field(default_factory=dict)
    patterns: tuple[tuple[str, float], ...] = ()
    blocks: tuple[float, ...] = ()

    @classmethod
    def of(cls, scale: float | str | Mapping[str, float] | None, weights: Sequence[str] = ()) -> Scales:
        """From "0.8", "unet=0.8,text_encoder=0.5" or a mapping; `weights` are PATTERN=W, or one list of block weights.

        Raises UsageError for what is no finite number, and for two lists.
        """
        overall, components = 1.0, {}
        if isinstance(scale, Mapping):
            components = {name: _number(value, name) for name, value in scale.items()}
        elif isinstance(scale, str) and "=" in scale:
            for item in scale.split(","):
                name, _, value = item.partition("=")
                components[name.strip()] = _number(value, item)
        elif scale is not None:
            overall = _number(scale, str(scale))
        patterns: list[tuple[str, float]] = []
        blocks: tuple[float, ...] = ()
        for item in weights:
            pattern, equals, value = item.rpartition("=")
            if equals:
                patterns.append((pattern, _number(value, item)))
            elif blocks:
                raise UsageError("two lists of block weights", hint="give one, and PATTERN=W for exceptions")
            else:
                blocks = tuple(_number(value, item) for value in item.split(","))
        return cls(overall, components, tuple(patterns), blocks)

    def weighing(self, table: Architecture | None, components: Sequence[str]) -> Weighing:
        """The number for every layer of a model with these components; raises UsageError for names it does not have."""
        for name in self.components:
            if name not in components:
                hint = nearest(name, components) or f"components: {', '.join(components)}"
                raise UsageError(f"the adapters have no component {name!r}", hint=hint)
        by_block = block_weights(self.blocks, table) if self.blocks else {}

        def weigh(component: str, path: str) -> float:
            scale = self.overall * self.components.get(component, 1.0)
            if by_block and table:
                block = block_of(table, component, path)
                scale *= by_block.get(block, by_block.get("BASE", 1.0))
            name = f"{component}.{path}"
            found = [weight for pattern, weight in self.patterns if fnmatchcase(name, pattern)]
            return scale * found[-1] if found else scale

        return weigh

    def unused(self, names: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """The patterns that fit none of these (component, path)."""
        told = [f"{component}.{path}" for component, path in names]
        return tuple(pattern for pattern, _ in self.patterns if not any(fnmatchcase(name, pattern) for name in told))


def _number(value: object, told: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number is caught
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{told!r} is no finite number", hint="0.8, or unet=0.8,text_encoder=0.5")
    return number
