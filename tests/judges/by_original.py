"""Adapters of a transformer under the names of its first release, as kohya's trainers, ComfyUI and others spell them.

The names and the order of rows come from the tables, which tests hold against diffusers' own converters; factors and
truth are made here: a fused layer has one pair of factors, and each part's delta is its rows of their product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from loratools.architectures.naming import Placement
from loratools.architectures.registry import architecture as known
from tests.judges.by_peft import SCALES
from tests.judges.fresh import fresh
from tests.judges.truth import Place, Truth, place, spread, weights

DOWN_UP = ("lora_down.weight", "lora_up.weight")
AB = ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class Spelling:
    """A prefix, a naming (kohya, comfy or diffusers, as the architecture has it), and how keys end."""

    prefix: str
    naming: str
    ends: tuple[str, str] = DOWN_UP
    alphas: bool = True
    flat: bool = False


SPELLINGS: Mapping[str, Spelling] = {
    "kohya": Spelling("lora_unet_", "kohya", flat=True),
    "kohya, diffusers' names": Spelling("lora_unet_", "diffusers", flat=True),
    "lora_transformer_": Spelling("lora_transformer_", "diffusers", flat=True),
    "ComfyUI, lora_down/lora_up": Spelling("diffusion_model.", "comfy"),
    "ComfyUI, lora_A/lora_B": Spelling("diffusion_model.", "comfy", AB, alphas=False),
    "ComfyUI, lora_A/lora_B with .alpha": Spelling("diffusion_model.", "comfy", AB),
    "original names without prefix": Spelling("", "comfy", AB, alphas=False),
}


def make(
    pipeline_folder: Path,
    out: Path,
    *,
    architecture: str,
    spelling: str,
    most: int | None = 24,
    scales: Sequence[tuple[int, int]] = SCALES,
    seed: int = 0,
) -> Truth:
    """A file over the transformer (rank, alpha dealt out from `scales`; alpha is the rank where none is written).

    Raises ValueError where the architecture has no names of that sort.
    """
    how = SPELLINGS[spelling]
    table = known(architecture)
    component = table.denoiser.name
    model = getattr(fresh(pipeline_folder), component)
    shapes = {path: tuple(part.weight.shape) for path, part in weights(model).items()}
    found = {placement.native: placement for placement in placements(architecture, how.naming, shapes)}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    deltas: dict[Place, torch.Tensor] = {}
    for native, (rank, alpha) in zip(spread(list(found), most), itertools.cycle(scales), strict=False):
        parts = [shapes[path] for path in found[native].paths]
        rows, (wide, *kernel) = sum(part[0] for part in parts), parts[0][1:]
        down = torch.randn((rank, wide, *kernel), generator=generator) / wide**0.5
        up = torch.randn((rows, rank, *(1 for _ in kernel)), generator=generator) / rank
        stem = how.prefix + (native.replace(".", "_") if how.flat else native)
        tensors |= {f"{stem}.{how.ends[0]}": down, f"{stem}.{how.ends[1]}": up}
        if how.alphas:
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
        scale = alpha / rank if how.alphas else 1.0
        delta = (scale * up.double().flatten(1) @ down.double().flatten(1)).reshape(rows, *parts[0][1:])
        for path, piece in _pieces(found[native], delta, parts):
            deltas[place(component, path)] = piece
    save_file(tensors, out)
    return Truth(out, architecture, deltas)


def placements(architecture: str, naming: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Placement]:
    """The layers under the names that are wanted, where the model has all of their parts."""
    table = known(architecture)
    name = {"kohya": table.kohya, "comfy": table.comfy, "diffusers": table.denoiser.namings[0].name}[naming]
    canonical = table.denoiser.namings[0].name
    if not name or (naming == "comfy" and name == canonical):
        raise ValueError(f"{architecture} has no names of its own there but diffusers'")
    spelt = table.denoiser.naming(name)
    assert spelt is not None
    for placement in spelt.placements():
        if all(path in shapes for path in placement.paths):
            yield placement.settled(shapes[placement.paths[0]]) or placement


def _pieces(
    placement: Placement, delta: torch.Tensor, parts: Sequence[tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    if placement.layout == "swap_halves":
        delta = torch.cat(delta.chunk(2)[::-1])
    elif placement.layout != "rows":
        raise ValueError(f"{placement.native} is laid out as {placement.layout}")
    yield from zip(placement.paths, delta.split([part[0] for part in parts]), strict=True)
