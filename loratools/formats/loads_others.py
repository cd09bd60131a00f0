"""What peft, vLLM, ComfyUI, A1111 and kohya's own tools make of a file."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from loratools.formats.loading import LOADS, NOT_KNOWN, Layer, Subject, Verdict, fails
from loratools.formats.loads_rows import Row, by_rows

STABLE_DIFFUSION = ("sd1", "sd2", "sdxl")
_LYCORIS = ("boft", "full", "glora", "loha", "lokr", "norm", "oft")
_ALPHA = ("alpha elsewhere",)

NO_CONFIG = fails("no adapter_config.json beside it: PEFT opens folders", "run")
TEXT_LEVEL = fails("refused: text_model. is no level of the installed CLIP", "run")
NO_TEXT_LEVEL = fails("refused: the installed CLIP has a text_model. level", "read")
OF_HCP = fails("left out: names of HCP-Diffusion, which no other program reads", "read")
DORA_SCALE = fails("wrong: PEFT does not read dora_scale", "read")

PEFT_ROWS: tuple[Row, ...] = (
    Row(NO_CONFIG, folder=False),
    Row(OF_HCP, families=("hcp",)),
    Row(
        fails("random: the keys name an adapter other than `default`, and are not found", "run"),
        marks=("named otherwise",),
    ),
    Row(fails("no base_model.model. before the names: left out", "read"), styles=("bare", "kohya", "comfy", "lycoris")),
    Row(fails("an alpha tensor is not read: the configuration's alpha is", "read"), marks=("alpha",)),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(LOADS, kinds=("lora",), families=("peft",), unless=("mid",)),
)

COMFYUI_ROWS: tuple[Row, ...] = (
    Row(OF_HCP, families=("hcp",)),
    Row(fails("scaled wrongly: alpha is read from alpha tensors alone", "read"), marks=_ALPHA),
    Row(fails("left out: none of its kinds of patches", "read"), kinds=("ia3",)),
    Row(fails("may turn differently: the constraint is taken as it is stored", "read"), marks=("constraint",)),
    Row(fails("left out: it does not map text_projection", "reported"), styles=("kohya",), paths=("text_projection",)),
    Row(LOADS, STABLE_DIFFUSION, styles=("kohya",)),
    Row(
        fails("left out: the UNet's names in diffusers' spelling are not read", "reported"),
        STABLE_DIFFUSION,
        styles=("component",),
        components=("unet",),
        families=("peft",),
    ),
    Row(
        fails("left out: the T5 of a file in diffusers' spelling is not read", "reported"),
        ("flux1",),
        styles=("component",),
        components=("text_encoder_2",),
    ),
    Row(LOADS, ("flux1",), styles=("component", "kohya", "comfy"), unless=("mid",)),
    Row(fails("left out: original names need diffusion_model. before them", "reported"), ("flux1",), styles=("bare",)),
    Row(LOADS, ("flux2",), styles=("kohya", "comfy")),
    Row(fails("left out: original names need diffusion_model. before them", "reported"), ("flux2",), styles=("bare",)),
    Row(
        fails("left out: the transformer's names in diffusers' spelling are not read", "reported"),
        ("hunyuan-video", "lumina2"),
        styles=("component",),
    ),
    Row(fails("the attention alone is read", "reported"), ("hunyuan-video",), styles=("kohya",)),
    Row(LOADS, ("pixart",), components=("transformer",)),
    Row(LOADS, styles=("comfy",), native=True),
)

A1111_ROWS: tuple[Row, ...] = (
    Row(OF_HCP, families=("hcp",)),
    Row(LOADS, STABLE_DIFFUSION, styles=("kohya",), kinds=("lora",), unless=(".dora_scale", "mid", "alpha elsewhere")),
)

KOHYA_ROWS: tuple[Row, ...] = (
    Row(OF_HCP, families=("hcp",)),
    Row(fails("its layers are named lora_unet_…, lora_te_…: other names are left out", "read"),
        styles=("component", "comfy", "peft", "bare")),
    Row(fails("LyCORIS does not merge (IA)³ from a file", "read"), kinds=("ia3",)),
    Row(fails("LyCORIS takes every dora_scale for the output's", "read"), marks=(".dora_scale", "input_magnitude")),
    Row(LOADS, STABLE_DIFFUSION, styles=("kohya",), kinds=_LYCORIS),
    Row(LOADS, ("sdxl",), styles=("kohya",), components=("unet",), native=True, unless=_ALPHA),
    Row(NOT_KNOWN, ("sdxl",), styles=("kohya",), components=("unet",)),
    Row(LOADS, STABLE_DIFFUSION, styles=("kohya",), unless=_ALPHA),
    Row(LOADS, ("flux1", "sd3", "lumina2", "hunyuan-image", "anima"), styles=("kohya",), native=True, unless=_ALPHA),
    Row(LOADS, ("flux1", "sd3", "lumina2", "anima"), styles=("kohya",), words=("te", "te1", "te2", "te3"),
        unless=_ALPHA),
    Row(LOADS, ("wan2.1", "wan2.2", "hunyuan-video", "krea2"), styles=("kohya",), words=("unet",), native=True,
        kinds=("lora", "loha", "lokr"), unless=_ALPHA),
    Row(LOADS, ("qwen-image", "z-image", "framepack"), styles=("kohya",), words=("unet",), native=False,
        kinds=("lora", "loha", "lokr"), unless=_ALPHA),
)  # fmt: skip

NOT_A_FOLDER = fails("no adapter_config.json beside it: vLLM opens folders", "read")
NO_LANGUAGE_MODEL = fails("no adapter of a language model", "read")
SAVED_WHOLE = fails("refuses the file: it holds modules saved whole", "reported")
DORA = fails("refuses the file: DoRA is not supported", "read")
OTHER_FACTORS = fails("refuses the file: it holds other tensors than lora_A and lora_B", "reported")
HEAD = fails("refuses the file: an adapter of lm_head or of the embeddings", "reported")
ONE_SCALE = fails("scaled wrongly: it takes one alpha and one rank for all layers", "read")
_HEADS = ("lm_head", "embed_tokens")


def by_peft(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from `PeftModel.from_pretrained` on the component of the installed libraries."""
    found = by_rows(PEFT_ROWS, subject, NOT_KNOWN)
    return [_at_level(subject, layer, verdict) for layer, verdict in zip(subject.layers, found, strict=True)]


def _at_level(subject: Subject, layer: Layer, verdict: Verdict) -> Verdict:
    """CLIP's layers once more: the class of a pipeline's first text encoder has no `text_model.`, others have."""
    if verdict is not LOADS or not layer.path.startswith("text_model."):
        return verdict
    level = ".text_model." in layer.stem
    flat = layer.component == "text_encoder" and subject.architecture != "sd3"
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
    found = by_rows(PEFT_ROWS, subject, NOT_KNOWN)
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


def by_comfyui(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from ComfyUI."""
    return by_rows(COMFYUI_ROWS, subject, NOT_KNOWN)


def by_a1111(subject: Subject) -> list[Verdict]:
    """A verdict for every layer from A1111 and its kin."""
    return by_rows(A1111_ROWS, subject, NOT_KNOWN)


def by_kohya(subject: Subject) -> Sequence[Verdict]:
    """A verdict for every layer from sd-scripts, musubi-tuner and LyCORIS."""
    return by_rows(KOHYA_ROWS, subject, NOT_KNOWN)
