"""What peft, vLLM, A1111 and kohya's own tools make of a file."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from loratools.architectures.architecture import Architecture
from loratools.architectures.registry import architecture
from loratools.formats.loading import LOADS, Layer, Subject, Verdict, fails, unknown
from loratools.formats.loads_comfyui import OF_HCP
from loratools.formats.loads_loaders import IN_GROUPS
from loratools.formats.loads_rows import NO_BIAS, Row, by_rows

STABLE_DIFFUSION = ("sd1", "sd2", "sdxl")
_LYCORIS = ("boft", "full", "glora", "loha", "lokr", "norm", "oft")
_ALPHA = ("alpha elsewhere",)

NO_CONFIG = fails("no adapter_config.json beside it: PEFT opens folders", "run")
TEXT_LEVEL = fails("refused: text_model. is no level of the installed CLIP", "run")
NO_TEXT_LEVEL = fails("refused: the installed CLIP has a text_model. level", "read")
DORA_SCALE = fails("wrong: PEFT does not read dora_scale", "read")

PEFT_ROWS: tuple[Row, ...] = (
    Row(NO_CONFIG, folder=False),
    Row(OF_HCP, families=("hcp",)),
    Row(IN_GROUPS, ("sana", "sana-video"), match=r"\.conv_depth$"),
    Row(
        fails("random: the keys name an adapter other than `default`, and are not found", "run"),
        marks=("named otherwise",),
    ),
    Row(fails("no base_model.model. before the names: left out", "read"), styles=("bare", "kohya", "comfy", "lycoris")),
    Row(fails("an alpha tensor is not read: the configuration's alpha is", "read"), marks=("alpha",)),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(fails("left out: it knows factors by the names lora_A and lora_B", "read"), families=("mlx", "gguf")),
    Row(LOADS, kinds=("lora",), families=("peft",), unless=("mid",)),
)

OTHER_FOR_PEFT = unknown("PEFT has a tuner of this kind; what it makes of the file was not looked into")

A1111_MODELS = (*STABLE_DIFFUSION, "sdxl-refiner")
NOT_IN_A1111 = fails("A1111 has no such model; Forge, where it has it, reads the names that ComfyUI does", "read")
A1111_ROWS: tuple[Row, ...] = (
    Row(OF_HCP, families=("hcp",)),
    NO_BIAS,
    Row(LOADS, styles=("kohya",), kinds=("lora",), unless=(".dora_scale", "mid", "alpha elsewhere")),
    Row(unknown("A1111 has a reader of this kind, which nobody has looked into"), styles=("kohya",)),
)
OTHER_FOR_A1111 = unknown("whether A1111 reads names other than lora_unet_…, lora_te_… was not looked into")

# Which trainer of kohya's has an architecture, the naming that its adapters are written and read under, its kinds.
SD_SCRIPTS = ("chroma", "flux1", "sd3", "lumina2", "hunyuan-image", "anima")
MUSUBI = (
    "flux1", "flux2", "framepack", "hunyuan-video", "hunyuan-video-1.5", "ideogram4", "kandinsky5", "krea2",
    "qwen-image", "wan2.1", "wan2.2", "z-image",
)  # fmt: skip
MUSUBI_KINDS = ("lora", "loha", "lokr")
NOT_KOHYAS = fails("no trainer of kohya's has such a model", "read")
LATER = {"minimax-h3": "a later musubi-tuner has the model, which was not read"}
KOHYA_ROWS: tuple[Row, ...] = (
    Row(OF_HCP, families=("hcp",)),
    Row(fails("its layers are named lora_unet_…, lora_te_…: other names are left out", "read"),
        styles=("component", "comfy", "comfy-text", "peft", "bare", "lycoris")),
    Row(fails("LyCORIS does not merge (IA)³ from a file", "read"), kinds=("ia3",)),
    NO_BIAS,
    Row(fails("LyCORIS takes every dora_scale for the output's", "read"), marks=(".dora_scale", "input_magnitude")),
    Row(fails("scaled wrongly: alpha is read from alpha tensors alone", "read"), marks=_ALPHA),
    Row(LOADS, STABLE_DIFFUSION, styles=("kohya",), kinds=_LYCORIS),
    Row(LOADS, ("sdxl",), styles=("kohya",), components=("unet",), native=True),
    Row(unknown("LyCORIS merges SDXL under diffusers' names; sd-scripts was not looked into"), ("sdxl",),
        styles=("kohya",), components=("unet",)),
    Row(LOADS, STABLE_DIFFUSION, styles=("kohya",)),
    Row(LOADS, (*SD_SCRIPTS, *MUSUBI), styles=("kohya",), words=("te", "te1", "te2", "te3")),
    Row(LOADS, MUSUBI, kinds=MUSUBI_KINDS),
    Row(LOADS, SD_SCRIPTS, kinds=("lora",)),
)  # fmt: skip
OTHER_NAMES_OF_KOHYA = fails("left out: not the name that the trainer's own model has for the layer", "read")
OTHER_FOR_KOHYA = unknown("which kinds its networks read for this model was not looked into")

NOT_A_FOLDER = fails("no adapter_config.json beside it: vLLM opens folders", "read")
NO_LANGUAGE_MODEL = fails("no adapter of a language model", "read")
SAVED_WHOLE = fails("refuses the file: it holds modules saved whole", "reported")
DORA = fails("refuses the file: DoRA is not supported", "read")
OTHER_FACTORS = fails("refuses the file: it holds other tensors than lora_A and lora_B", "reported")
HEAD = fails("refuses the file: an adapter of lm_head or of the embeddings", "reported")
ONE_SCALE = fails("scaled wrongly: it takes one alpha and one rank for all layers", "read")
ALL_EXPERTS = fails("one pair of factors for all experts: it names each expert's layers", "reported")
_STACKED = (".experts", ".base_layer")
_HEADS = ("lm_head", "embed_tokens")


def by_peft(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from `PeftModel.from_pretrained` on the component of the installed libraries."""
    found = by_rows(PEFT_ROWS, subject, OTHER_FOR_PEFT)
    return [_at_level(subject, layer, verdict) for layer, verdict in zip(subject.layers, found, strict=True)]


def _at_level(subject: Subject, layer: Layer, verdict: Verdict) -> Verdict:
    """CLIP's layers once more: the class of a pipeline's first text encoder has no `text_model.`, others have."""
    if verdict is not LOADS or not layer.path.startswith("text_model."):
        return verdict
    level = ".text_model." in layer.stem
    flat = architecture(subject.architecture).by_name[layer.component].naming("flat") is not None
    if level == flat:
        return TEXT_LEVEL if flat else NO_TEXT_LEVEL
    return verdict


def refused_by_vllm(subject: Subject, *, plain: bool = False) -> Verdict | None:
    """Why vLLM takes nothing of an adapter, however it is written; with `plain` DoRA is made a LoRA first."""
    config = subject.config("") or {}
    if subject.architecture.split("-")[0] != "llm":
        return NO_LANGUAGE_MODEL
    if subject.adapters.extras or config.get("modules_to_save"):
        return SAVED_WHOLE
    dora = config.get("use_dora") or any("magnitude" in layer.adapter.factors for layer in subject.layers)
    if dora and not plain:
        return DORA
    if not plain and any(
        layer.adapter.kind != "lora" or "singular" in layer.adapter.factors for layer in subject.layers
    ):
        return OTHER_FACTORS
    heads = any(layer.path.rpartition(".")[2] in _HEADS for layer in subject.layers)
    return HEAD if heads else None


def by_vllm(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from vLLM."""
    whole = refused_by_vllm(subject) or (None if subject.folder else NOT_A_FOLDER)
    if whole is not None:
        return [whole] * len(subject.layers)
    config = subject.config("") or {}
    found = [
        ALL_EXPERTS if verdict is LOADS and layer.stem.endswith(_STACKED) else verdict
        for layer, verdict in zip(subject.layers, by_rows(PEFT_ROWS, subject, OTHER_FOR_PEFT), strict=True)
    ]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, int) and rank and isinstance(alpha, int | float):
        scale = Fraction(alpha) / rank
        for at, layer in enumerate(subject.layers):
            if found[at] is LOADS and not _one_scale(layer, scale, rank):
                found[at] = ONE_SCALE
    return found


def _one_scale(layer: Layer, scale: Fraction, rank: int) -> bool:
    """Whether the scale of the whole file is the layer's own, too."""
    alpha, own = layer.adapter.alpha, layer.adapter.rank
    if alpha.value is None or not own:
        return scale == 1
    if alpha.rank_stabilized:
        return own == rank and alpha.value == scale * rank
    return alpha.value / own == scale


def not_in_a1111(name: str) -> Verdict | None:
    """Why A1111 takes no adapter of an architecture, or None."""
    return None if name in A1111_MODELS else NOT_IN_A1111


def by_a1111(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from A1111 and its kin."""
    whole = not_in_a1111(subject.architecture)
    if whole is not None:
        return [whole] * len(subject.layers)
    return by_rows(A1111_ROWS, subject, OTHER_FOR_A1111)


def not_kohyas(name: str) -> Verdict | None:
    """Why none of kohya's trainers takes an adapter of an architecture, or nobody has looked, or None."""
    if name in LATER:
        return unknown(LATER[name])
    return None if name in (*STABLE_DIFFUSION, *SD_SCRIPTS, *MUSUBI) else NOT_KOHYAS


def by_kohya(subject: Subject) -> Sequence[Verdict]:
    """A verdict for every layer from sd-scripts, musubi-tuner and LyCORIS."""
    whole = not_kohyas(subject.architecture)
    if whole is not None:
        return [whole] * len(subject.layers)
    found = by_rows(KOHYA_ROWS, subject, OTHER_FOR_KOHYA)
    known = architecture(subject.architecture)
    named = known.denoiser.name if known.id not in STABLE_DIFFUSION else ""
    return [
        OTHER_NAMES_OF_KOHYA
        if verdict is LOADS and layer.component == named and not _as_trained(known, layer)
        else verdict
        for layer, verdict in zip(subject.layers, found, strict=True)
    ]


def _as_trained(known: Architecture, layer: Layer) -> bool:
    """Whether the file names a layer as the trainer names it."""
    naming = known.denoiser.naming(known.kohya)
    placement = naming.at_canonical(layer.path) if naming else None
    return placement is not None and layer.stem == f"lora_unet_{placement.native.replace('.', '_')}"
