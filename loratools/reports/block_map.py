"""One number for each module, laid out by block and layer: the rows and columns that a model is built in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Names that are followed by the number of a block although they are no plural: T5's `block.3.layer.0`, GPT-2's `h.3`.
_BLOCKS = frozenset({"block", "layer", "h"})
_NO_BLOCK = "(outside of blocks)"


@dataclass(frozen=True, slots=True)
class BlockMap:
    """The modules of one component that stand in blocks of one sort; a value of None was not measured."""

    component: str
    sort: str
    blocks: tuple[str, ...]
    layers: tuple[str, ...]
    values: Mapping[tuple[str, str], float | None]

    @property
    def title(self) -> str:
        """How it is headed: `unet · transformer_blocks`."""
        return f"{self.component} · {self.sort}" if self.sort else self.component


def placed(path: str) -> tuple[str, str]:
    """A module path as its block and its layer: `down_blocks.0.attentions.1` and `proj_in`.

    A block ends at the last number that follows a plural, or one of a few names; `net.0` and `to_out.0` are layers.
    """
    first, *fused = path.split("+")
    parts = first.split(".")
    at = next(
        (
            index + 1
            for index in range(len(parts) - 2, 0, -1)
            if parts[index].isdigit() and (parts[index - 1].endswith("s") or parts[index - 1] in _BLOCKS)
        ),
        0,
    )
    layer = ".".join(parts[at:])
    return ".".join(parts[:at]), f"{layer} +{len(fused)}" if fused else layer


def block_maps(values: Iterable[tuple[str, float | None]]) -> tuple[BlockMap, ...]:
    """Maps of (module, value) pairs, a module named `component:path`; blocks and layers stand as they first came."""
    groups: dict[tuple[str, str], dict[tuple[str, str], float | None]] = {}
    for module, value in values:
        component, _, path = module.rpartition(":")
        block, layer = placed(path)
        parts = block.split(".")
        sort = parts[-2] if len(parts) > 1 else ""
        groups.setdefault((component, sort), {})[block or _NO_BLOCK, layer] = value
    return tuple(
        BlockMap(
            component,
            sort,
            tuple(dict.fromkeys(block for block, _ in found)),
            tuple(dict.fromkeys(layer for _, layer in found)),
            found,
        )
        for (component, sort), found in groups.items()
    )
