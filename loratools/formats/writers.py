"""How a format spells the components of a set: which names, and what hangs on the model for them."""

from __future__ import annotations

from dataclasses import replace

from loratools.adapters.adapter import AdapterSet
from loratools.architectures.architecture import Architecture
from loratools.architectures.llm_namings import LanguageNaming
from loratools.architectures.naming import Naming
from loratools.errors import NotRepresentable
from loratools.formats import mlx, peft
from loratools.formats.control import as_comfyui_reads
from loratools.formats.format import Format, Options
from loratools.formats.gguf_names import GgufNaming, gguf_naming, require_named
from loratools.formats.language import naming_to_write
from loratools.formats.spell import Writer, dimensions_of, naming_for
from loratools.formats.switches import switch_naming


def writers(
    adapters: AdapterSet,
    form: Format,
    architecture: Architecture | None,
    options: Options,
    known: tuple[Architecture, ...],
) -> dict[str, Writer]:
    """component → Writer; raises NotRepresentable where the format cannot name a component at all."""
    if adapters.dialect.format == "gguf":
        require_named(adapters)
    form = as_comfyui_reads(form, adapters)
    found: dict[str, Writer] = {}
    for name in dict.fromkeys(item.target.component for item in adapters.adapters):
        component = architecture.by_name[name] if architecture else None
        spelling = form.spell(architecture, component, options)
        if spelling is None:
            origin = next((item.origin for item in adapters.adapters if item.origin), None)
            raise NotRepresentable(
                f"{form.id} has no names for {name} of this model ({', '.join(adapters.architectures[:3])})",
                path=origin.file if origin else None,
                key=origin.stem if origin else None,
                hint="--to peft keeps the model's own names",
            )
        if component is None and not spelling.naming:
            own = adapters.dialect.spellings.get(name)
            spelling = replace(spelling, naming=naming_to_write(own, options, stacks=form.id == peft.PEFT.id))
            if form.id == mlx.MLX.id:
                spelling = replace(spelling, naming=switch_naming(adapters, spelling.naming, own))
        naming: Naming | LanguageNaming | GgufNaming | None = naming_for(component, spelling.naming)
        if form.container == "gguf":
            naming = gguf_naming(adapters, naming)
        found[name] = Writer(
            spelling, naming, dimensions_of(known, name) if form.strict or form.alpha != "tensor" else {}
        )
    return found
