"""Stability AI's LoRAs of Stable Cascade, which number their layers: `weights.0.lora_up`, with no name and no alpha.

Its script wraps the weights of every attention of stage C, and lists the wrappers in the order in which torch walks the
model. Their scale is 1 / rank. A file of another number of layers, or of other sizes, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from loratools.architectures.architecture import Shapes, Variant, shapes
from loratools.architectures.stable_cascade import STABLE_CASCADE
from loratools.architectures.walks import cascade_walk
from loratools.errors import ArchitectureMismatch, IncompleteAdapter
from loratools.formats.suffixes import Suffix
from loratools.tensors.source import TensorSource

FAMILY = "stable-cascade"
ROWS = {role: Suffix(f".lora_{role}", role, "lora", FAMILY) for role in ("down", "up")}

_KEY = re.compile(r"weights\.(0|[1-9]\d{0,5})\.lora_(down|up)")


def placed_in_cascade(source: TensorSource) -> dict[str, tuple[str, Suffix, str]]:
    """key → (component, row, native path); raises IncompleteAdapter, or ArchitectureMismatch where no size fits."""
    layers: dict[int, dict[str, str]] = {}
    for key in source:
        match = _KEY.fullmatch(key)
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = key
    for number in range(len(layers)):
        if len(layers.get(number, {})) != len(ROWS):
            key = next(iter(layers[min(layers)].values()))
            raise IncompleteAdapter(f"layer {number} of a numbered file is not there whole", path=source.name, key=key)
    paths = next((paths for paths, sizes in _walks() if _fits(layers, sizes, source)), None)
    if paths is None:
        raise ArchitectureMismatch(
            f"the {len(layers)} numbered layers are not the attentions of Stable Cascade's stage C",
            path=source.name,
            key=layers[0]["up"],
            hint="what the script trains with its own filter, `.attn`, is read",
        )
    component = STABLE_CASCADE.denoiser.name
    return {
        key: (component, ROWS[role], paths[number]) for number, roles in layers.items() for role, key in roles.items()
    }


def _walks() -> Iterator[tuple[list[str], list[tuple[int, int]]]]:
    """(native paths in order, their sizes) for both sizes of the model."""
    naming = STABLE_CASCADE.denoiser.naming("original")
    assert naming is not None
    fused = {placement.native: placement.paths for placement in naming.placements()}
    for variant in STABLE_CASCADE.variants:
        table = _table(variant)
        paths = [path for path in cascade_walk() if fused[path][0] in table]
        yield paths, [(sum(table[part][0] for part in fused[path]), table[fused[path][0]][1]) for path in paths]


def _table(variant: Variant) -> Shapes:
    return shapes(variant.shapes)[STABLE_CASCADE.denoiser.name]


def _fits(layers: dict[int, dict[str, str]], sizes: list[tuple[int, int]], source: TensorSource) -> bool:
    """Whether every layer makes a weight of the size that stands at its number."""
    if len(layers) != len(sizes):
        return False
    for number, (rows, columns) in enumerate(sizes):
        up, down = (source[layers[number][role]].shape for role in ("up", "down"))
        if len(up) != 2 or len(down) != 2 or up[1] != down[0] or (up[0], down[1]) != (rows, columns):
            return False
    return True
