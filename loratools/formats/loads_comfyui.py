"""What ComfyUI makes of a file: the names that it maps for each of its models, as in its source (comfy/lora.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.registry import architecture
from loratools.formats.comfy import INPUT, KEYS, MODEL
from loratools.formats.loading import LOADS, Layer, Subject, Verdict, fails, unknown
from loratools.formats.loads_rows import Row, by_rows
from loratools.formats.suffixes import OLD_SET_WEIGHT

NO_MODEL = fails("ComfyUI has no such model", "read")
NAMES_NOT_KNOWN = unknown("ComfyUI has the model, under names that the tables do not have")
OTHER_NAMES = fails("left out: not one of the names that it maps for this model", "read")
OTHER_ENDS = fails("left out: it knows no factors by such names", "read")
OTHER_TEXT = fails("left out: it maps this text encoder's layers under other names", "read")
OF_HCP = fails("left out: names of HCP-Diffusion, which no other program reads", "read")
BARE_NORM = fails(
    "left out: it takes norms whole only beside BFL's img_in and names, as --to comfy writes them", "read"
)
BARE_BIAS = fails("its bias is left out: lora_B.bias is read only beside BFL's img_in and norms", "read")
OLD_NORM = unknown("read by ComfyUI before February 2026; a later one calls that weight otherwise")
NEW_NORM = unknown("read by ComfyUI from February 2026 on; an earlier one calls that weight otherwise")
NOT_WIDENED = unknown("read where the model's input is as wide; nothing tells ComfyUI to widen another's")

OF_BFL = r"^(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)\b"
# A control adapter of Flux in BFL's names, which it knows by two keys and takes whole.
CONTROL_ROWS: tuple[Row, ...] = (
    Row(LOADS, kinds=("norm",), spelt=r"^(double|single)_blocks\..*(query|key)_norm$"),
    Row(LOADS, kinds=("lora",), families=("kohya", "peft"), unless=("alpha elsewhere",), spelt=OF_BFL),
)
ROWS: tuple[Row, ...] = (
    Row(OF_HCP, families=("hcp",)),
    Row(BARE_NORM, families=("",), kinds=("norm",)),
    Row(BARE_BIAS, marks=("up_bias",)),
    Row(OLD_NORM, marks=(OLD_SET_WEIGHT,)),
    Row(NEW_NORM, families=("comfy",), kinds=("norm",), spelt=r"\.(query|key)_norm$"),
    Row(OTHER_ENDS, families=("", "gguf", "mlx", "stable-cascade")),
    Row(
        unknown("whether it turns by PEFT's rotations of the inputs (oft_R) was not looked into"),
        kinds=("oft",),
        families=("peft",),
    ),
    Row(fails("scaled wrongly: alpha is read from alpha tensors alone", "read"), marks=("alpha elsewhere",)),
    Row(fails("left out: none of its kinds of patches", "read"), kinds=("ia3",)),
    Row(fails("wrong: it knows a magnitude by the name dora_scale alone", "read"), marks=(".lora_magnitude_vector",)),
    Row(
        fails("wrong: it knows a magnitude by the name dora_scale alone", "read"),
        marks=(".lora_magnitude_vector.weight",),
    ),
    Row(fails("may turn differently: the constraint is taken as it is stored", "read"), marks=("constraint",)),
)
"""What holds whatever a layer is called."""

WITHOUT_MODEL = (
    "animatediff", "bria-fibo", "bria-fibo-2", "cogview4", "flux3", "framepack", "helios", "kandinsky2.2", "latte",
    "omnigen", "sana", "sana-video", "wuerstchen",
)  # fmt: skip


class Alias(NamedTuple):
    """Names that a model is read under beside its own: a prefix, a naming ("" for its own), and whether it is flat."""

    prefix: str
    naming: str = "diffusers"
    flat: bool = False


# Every model under its own names.
OWN = (Alias("diffusion_model.", ""), Alias("lora_unet_", "", flat=True))
_COMPONENT, _BARE, _PEFT = Alias("transformer."), Alias(""), Alias("base_model.model.")
_LYCORIS, _ONETRAINER = Alias("lycoris_", flat=True), Alias("lora_transformer_", flat=True)
_BEHIND_PREFIX = Alias("diffusion_model.")
_UNET = (Alias("lora_unet_", flat=True), _LYCORIS)
_FLUX = (_COMPONENT, _LYCORIS, _ONETRAINER, _BARE)
ALIASES: Mapping[str, tuple[Alias, ...]] = {
    "ace-step": (Alias("base_model.model.", "original"), Alias("lycoris_", "original", flat=True)),
    "auraflow": (_COMPONENT,),
    "chroma": _FLUX,
    "ernie-image": (_COMPONENT,),
    "flux1": _FLUX,
    "hidream": (_COMPONENT, _LYCORIS),
    "hunyuan-dit": (Alias("base_model.model.", ""),),
    "kandinsky5": (_COMPONENT, _BARE),
    "krea2": (_BEHIND_PREFIX, _COMPONENT, _LYCORIS, _BARE),
    "longcat-image": _FLUX,
    "ltx-video": (Alias("", ""),),
    "ltx2": (Alias("", ""),),
    "minimax-h3": (Alias("", ""),),
    "mochi": (Alias("", ""),),
    "pixart": (_COMPONENT, _PEFT),
    "qwen-image": (_COMPONENT, _LYCORIS, _BARE),
    "qwen-image-2.1": (_COMPONENT, _LYCORIS, _BARE),
    "sd1": _UNET,
    "sd2": _UNET,
    "sd3": (_COMPONENT, _PEFT, _ONETRAINER, _LYCORIS),
    "sdxl": _UNET,
    "sdxl-refiner": _UNET,
    "stable-cascade": (Alias("lora_prior_unet_", "", flat=True),),
    "z-image": (_BEHIND_PREFIX, _COMPONENT, _LYCORIS, _BARE),
}
# HunyuanVideo's words as its first adapters had them, put for ComfyUI's own, behind either of two prefixes.
HUNYUAN, HUNYUAN_PREFIXES = ("hunyuan-video", "hunyuan-image"), ("transformer.", "diffusion_model.")
HUNYUAN_WORDS = (
    ("_mod.lin", "_mod.linear"), ("_attn.qkv", "_attn_qkv"), ("_attn.proj", "_attn_proj"), ("mlp.0", "mlp.fc1"),
    ("mlp.2", "mlp.fc2"), (".modulation.lin", ".modulation.linear"),
)  # fmt: skip
FLUX2_NAMES = unknown("reported to be read in part: ComfyUI splits the single blocks as FLUX.1's")
# component → the prefixes of its flat keys, by what a text encoder is
CLIP_WORDS = ("te", "te1", "te2")


def not_in_comfyui(name: str) -> Verdict | None:
    """Why ComfyUI takes no adapter of an architecture, or nobody knows under which names, or None."""
    if name.split("-", maxsplit=1)[0] == "llm" or name in WITHOUT_MODEL:
        return NO_MODEL
    return None if architecture(name).comfy else NAMES_NOT_KNOWN


def by_comfyui(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from ComfyUI."""
    whole = not_in_comfyui(subject.architecture)
    if whole is not None:
        return [whole] * len(subject.layers)
    known = architecture(subject.architecture)
    if known.id == MODEL and set(KEYS) <= set(subject.keys):
        return by_rows((*CONTROL_ROWS, *ROWS), subject, OTHER_NAMES)
    found = by_rows(ROWS, subject, LOADS)
    own = {part.name: part for part in known.components if part.inside or part is known.denoiser}
    return [
        verdict
        if verdict is not LOADS
        else _mapped(known, part, layer, subject)
        if (part := own.get(layer.component)) is not None
        else _text(layer)
        for layer, verdict in zip(subject.layers, found, strict=True)
    ]


def _mapped(known: Architecture, part: Component, layer: Layer, subject: Subject) -> Verdict:
    """Whether a layer of the model itself stands under one of the names that the model is read under."""
    stem = layer.stem.removesuffix("_lora") if layer.sort.family == "attn-procs" else layer.stem
    if stem in _names(known, part, layer):
        narrow = known.id == MODEL and layer.path == INPUT and subject.reading.variants == ("control",)
        return NOT_WIDENED if narrow and f"{stem}.reshape_weight" not in subject.keys else LOADS
    if known.id == "flux2" and layer.sort.style == "component":
        return FLUX2_NAMES
    return OTHER_NAMES


def _names(known: Architecture, part: Component, layer: Layer) -> Iterator[str]:
    """The stems that begin as the layer's own does under which ComfyUI reads this layer, fused as it is."""
    own = part.inside or known.comfy
    others = ALIASES.get(known.id, ())
    for alias in (*OWN, *others) if layer.sort.native else (*others, *OWN):  # what it was read by, first
        naming = part.naming(alias.naming or own) if layer.stem.startswith(alias.prefix) else None
        placement = naming.at_canonical(layer.path) if naming else None
        if placement is None or placement.paths != layer.adapter.target.paths:
            continue
        name = placement.native
        yield alias.prefix + (name.replace(".", "_") if alias.flat else name)
    if known.id in HUNYUAN and layer.stem.startswith(HUNYUAN_PREFIXES):
        yield from _of_first_adapters(part, own, layer)
    if part.name == "unet" and not layer.stem.startswith("lora_unet_"):
        name = layer.path.replace(".to_", ".processor.to_")
        name = name.removesuffix(".0") if name.endswith(".to_out.0") else name
        yield from (name, f"unet.{name}")


def _of_first_adapters(part: Component, own: str, layer: Layer) -> Iterator[str]:
    """HunyuanVideo's names as its first adapters had them."""
    naming = part.naming(own)
    placement = naming.at_canonical(layer.path) if naming else None
    if placement is not None and placement.paths == layer.adapter.target.paths:
        name = placement.native
        for new, old in HUNYUAN_WORDS:
            name = name.replace(new, old)
        yield from (prefix + name for prefix in HUNYUAN_PREFIXES)


def _text(layer: Layer) -> Verdict:
    """Whether a layer of a text encoder stands under one of the names that it is read under."""
    style, clip = layer.sort.style, layer.path.startswith("text_model.")
    if style == "comfy-text" or (style == "kohya" and layer.path == "text_projection"):
        return LOADS
    if style == "kohya":
        return LOADS if not clip or layer.sort.word in CLIP_WORDS else OTHER_TEXT
    return LOADS if style == "component" and clip and ".text_model." in layer.stem else OTHER_TEXT
