"""One LoRA spelt in all the ways that files are: prefixes, names and ends of keys, and places of alpha."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import loratools as lt
from loratools.architectures.registry import architecture
from tests.judges.by_mixin import LINEAR, Pair

Tensors = dict[str, torch.Tensor]
PLAIN, SCALED = ((2, 2), (3, 3)), ((2, 1), (2, 4), (4, 2), (4, 1))
"""(rank, alpha) dealt out in turn."""

AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")


class Spelt(NamedTuple):
    """A file's tensors and metadata, and the truth by canonical path."""

    tensors: Tensors
    metadata: Mapping[str, str]
    true: Mapping[str, Pair]


class Lora(NamedTuple):
    """Random factors for layers of a model by canonical path: (down, up, alpha), shaped as the weights are."""

    architecture: str
    component: str
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]

    @property
    def start(self) -> str:
        """How diffusers' own keys begin."""
        return f"{self.component}."

    @property
    def true(self) -> dict[str, Pair]:
        """What each layer's product is."""
        return {
            path: Pair(down.double().flatten(1), up.double().flatten(1), alpha / down.shape[0])
            for path, (down, up, alpha) in self.layers.items()
        }

    def dotted(self, prefix: str, ends: tuple[str, str], *, alphas: bool = False, flat: bool = False) -> Spelt:
        """Under diffusers' names."""
        tensors: Tensors = {}
        for path, (down, up, alpha) in self.layers.items():
            stem = prefix + (path.replace(".", "_") if flat else path)
            tensors |= {stem + ends[0]: down, stem + ends[1]: up}
            if alphas:
                tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        return Spelt(tensors, {"format": "pt"}, self.true)

    def written(self, form: str) -> Spelt:
        """As the tool itself writes it."""
        source = self.dotted(self.start, AB, alphas=True).tensors
        made = lt.convert(source, to=form, arch=self.architecture)
        return Spelt(made.state_dict(), made.rendered.files[0].metadata, self.true)

    def native(self, prefix: str, ends: tuple[str, str], *, alphas: bool = False, naming: str = "") -> Spelt:
        """Under the original names, as ComfyUI has them or another naming, behind another prefix, with other ends."""
        tensors: Tensors = {}
        part = architecture(self.architecture).by_name[self.component]
        own = part.naming(architecture(self.architecture).comfy)
        names = {placement.native: placement.paths[0] for placement in own.placements()} if own and naming else {}
        other = part.naming(naming) if naming else None
        for key, value in self.written("comfy").tensors.items():
            name = key.removeprefix("diffusion_model.")
            if other is not None:
                stem = next(stem for at in range(len(name)) if (stem := name[: len(name) - at]) in names)
                name = other.at_canonical(names[stem]).native + name[len(stem) :]
            name = prefix + name
            if not name.endswith(".alpha") or alphas:
                tensors[name.replace(DOWN_UP[0], ends[0]).replace(DOWN_UP[1], ends[1])] = value
        return Spelt(tensors, {}, self.true)


def layers(name: str, component: str, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """canonical path → shape of every weight of the model that a LoRA changes and a table has."""
    known = architecture(name).by_name[component].namings[0]
    paths = {path for placement in known.placements() for path in placement.paths}
    # PEFT takes no convolution in groups, unless they divide the rank.
    found = {path: part for path, part in model.named_modules() if isinstance(part, LINEAR) and whole(part)}
    return {path: tuple(part.weight.shape) for path, part in found.items() if path in paths}


def whole(part: Any) -> bool:
    """Whether a layer is no convolution in groups."""
    return getattr(part, "groups", 1) == 1


def lora(name: str, component: str, shapes: Mapping[str, tuple[int, ...]], scales: Any, seed: int = 0) -> Lora:
    """Random factors, the ranks and alphas dealt out from `scales`."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for (path, (rows, columns, *kernel)), (rank, alpha) in zip(shapes.items(), itertools.cycle(scales), strict=False):
        down = torch.randn(rank, columns, *kernel, generator=generator)
        up = torch.randn(rows, rank, *(1 for _ in kernel), generator=generator)
        made[path] = (down, up, float(alpha))
    return Lora(name, component, made)


Spell = Callable[[Lora, Lora], Spelt]
"""From one LoRA with scales of its own and one without."""

CANONICAL: Mapping[str, Spell] = {
    "diffusers": lambda scaled, _: scaled.written("diffusers"),
    "component, lora_A": lambda _, plain: plain.dotted(plain.start, AB),
    "component, lora_A, alpha": lambda scaled, _: scaled.dotted(scaled.start, AB, alphas=True),
    "component, lora_down": lambda _, plain: plain.dotted(plain.start, DOWN_UP),
    "component, lora_down, alpha": lambda scaled, _: scaled.dotted(scaled.start, DOWN_UP, alphas=True),
    "component, lora.down": lambda _, plain: plain.dotted(plain.start, OLD),
    "component, lora_A.default": lambda _, plain: plain.dotted(plain.start, DEFAULT),
    "lora_unet_, alpha": lambda scaled, _: scaled.dotted("lora_unet_", DOWN_UP, alphas=True, flat=True),
    "lora_transformer_, alpha": lambda scaled, _: scaled.dotted("lora_transformer_", DOWN_UP, alphas=True, flat=True),
    "diffusion_model., lora_A": lambda _, plain: plain.dotted("diffusion_model.", AB),
    "diffusion_model., lora_A, alpha": lambda scaled, _: scaled.dotted("diffusion_model.", AB, alphas=True),
    "diffusion_model., lora_down, alpha": lambda scaled, _: scaled.dotted("diffusion_model.", DOWN_UP, alphas=True),
    "no prefix, lora_A": lambda _, plain: plain.dotted("", AB),
    "no prefix, lora_A, alpha": lambda scaled, _: scaled.dotted("", AB, alphas=True),
    "no prefix, lora_A.default": lambda _, plain: plain.dotted("", DEFAULT),
    "base_model.model., lora_A": lambda _, plain: plain.dotted("base_model.model.", AB),
}
NATIVE: Mapping[str, Spell] = {
    "kohya": lambda scaled, _: scaled.written("kohya"),
    "comfy": lambda scaled, _: scaled.written("comfy"),
    "diffusion_model., original, lora_A": lambda _, plain: plain.native("diffusion_model.", AB),
    "diffusion_model., original, lora_A, alpha": lambda scaled, _: scaled.native("diffusion_model.", AB, alphas=True),
    "component, original, lora_A": lambda _, plain: plain.native(plain.start, AB),
    "no prefix, original, lora_A": lambda _, plain: plain.native("", AB),
    "no prefix, original, lora_A, alpha": lambda scaled, _: scaled.native("", AB, alphas=True),
    "base_model.model., original, lora_A": lambda _, plain: plain.native("base_model.model.", AB),
}


TRAINERS: Mapping[str, Callable[[str], Spell]] = {
    "diffusion_model., trainers' names, lora_A": lambda naming: (
        lambda _, plain: plain.native("diffusion_model.", AB, naming=naming)
    ),
    "component, trainers' names, lora_A": lambda naming: lambda _, plain: plain.native(plain.start, AB, naming=naming),
}
"""For the few whose trainers' names are neither ComfyUI's nor diffusers'."""


def spellings(name: str) -> Iterator[tuple[str, Spell]]:
    """The spellings that an architecture has."""
    known = architecture(name)
    yield from CANONICAL.items()
    for title, spell in NATIVE.items():
        if title == "kohya" or (known.comfy and (known.comfy != known.denoiser.namings[0].name or title == "comfy")):
            yield title, spell
    if known.comfy and known.kohya not in (known.comfy, known.denoiser.namings[0].name):
        yield from ((title, make(known.kohya)) for title, make in TRAINERS.items())
