"""kohya: flat keys `lora_unet_…`, one alpha tensor a layer. sd-scripts, LyCORIS, A1111 and ComfyUI read it."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component
from loratools.formats.format import BUNDLE, Format, Options
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling


def _spell(architecture: Architecture | None, component: Component | None, _: Options) -> Spelling | None:
    """The denoiser in the naming that the trainers use, text encoders always with `text_model`."""
    if architecture is None or component is None:
        return None
    if component.inside:
        return Spelling(f"lora_{architecture.denoiser.short[0]}_", component.inside, True, WRITTEN["kohya"])
    if not component.short:
        return None  # flat keys of a model without a table, or of a component without a word, could not be read back
    naming = architecture.kohya if component is architecture.denoiser else component.namings[0].name
    return Spelling(f"lora_{component.short[0]}_", naming, True, WRITTEN["kohya"])


KOHYA = Format(
    id="kohya",
    title="kohya-ss sd-scripts, A1111, LyCORIS: flat names, alpha tensors",
    readers=("kohya", "a1111", "comfyui", "diffusers"),
    alpha="tensor",
    kinds=("boft", "full", "glora", "ia3", "loha", "lokr", "lora", "norm", "oft"),
    spell=_spell,
    extras=(BUNDLE,),
)
