"""Architecture, Component, Variant: a table's frame. One file each fills it in; `registry` lists them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from loratools.architectures.naming import Naming

Shapes = Mapping[str, tuple[int, ...]]
TABLES = Path(__file__).parent / "shapes"


class Component(NamedTuple):
    """One model of the pipeline.

    `namings` are its spellings, the canonical one first; `adapters` are those that only adapters have, and of some
    modules alone. `short` are the words that trainers put into flat keys for it (`lora_te2_` → "te2"), the one to write
    first (none where they have no such keys); `checkpoint` are its prefixes inside single-file checkpoints. `inside`
    names the naming under which the denoiser's own files spell it as a part of the denoiser ("" where none do).
    """

    name: str
    namings: tuple[Naming, ...]
    short: tuple[str, ...]
    checkpoint: tuple[str, ...] = ()
    adapters: tuple[Naming, ...] = ()
    inside: str = ""

    def naming(self, name: str) -> Naming | None:
        """The naming of that name, or None."""
        return next((naming for naming in (*self.namings, *self.adapters) if naming.name == name), None)


class Variant(NamedTuple):
    """One size or flavour; `shapes` names the generated table of its weights."""

    name: str
    shapes: str


class Architecture(NamedTuple):
    """Which modules exist in which component, and how each naming spells them.

    `kohya` is the naming that kohya's trainers write for the denoiser, `comfy` the one under which ComfyUI takes
    adapters of it ("" where it takes none, or where that is not known). `family` are ids that share paths and shapes
    with this one, and `rarer` says that another of them is met more often; `yields_to` are those whose names and sizes
    it took over, so that a file which fits both is theirs unless it says otherwise. `specification` are the
    `modelspec.architecture` and `base_versions` the `ss_base_model_version` spellings that mean this architecture.
    `spelt` are the ways of spelling, as (style of prefix, family of suffixes), that its trainers alone have among those
    of models with the same layers.
    """

    id: str
    title: str
    components: tuple[Component, ...]
    variants: tuple[Variant, ...]
    kohya: str = "diffusers"
    comfy: str = ""
    family: tuple[str, ...] = ()
    rarer: bool = False
    yields_to: tuple[str, ...] = ()
    specification: tuple[str, ...] = ()
    base_versions: tuple[str, ...] = ()
    spelt: tuple[tuple[str, str], ...] = ()

    @property
    def by_name(self) -> dict[str, Component]:
        """The components by name."""
        return {component.name: component for component in self.components}

    @property
    def words(self) -> tuple[str, ...]:
        """What it is called: its id, its title, and what trainers write."""
        return (self.id, self.title, *self.specification, *self.base_versions)

    @property
    def denoiser(self) -> Component:
        """The first component: the model that a LoRA without a prefix is about."""
        return self.components[0]


@cache
def shapes(table: str) -> Mapping[str, Shapes]:
    """component → canonical path → shape of its weight, from a generated table."""
    import zlib  # `gzip` would import a dozen modules more

    raw = (TABLES / f"{table}.json.gz").read_bytes()
    document = json.loads(zlib.decompress(raw, wbits=zlib.MAX_WBITS | 16))
    return {name: {path: tuple(shape) for path, shape in table.items()} for name, table in document.items()}
