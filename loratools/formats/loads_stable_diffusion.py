"""What diffusers' loaders for the UNets of Stable Diffusion make of a file: their own steps, followed over the keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from loratools.formats.configs import DIFFUSERS_KEY, by_component
from loratools.formats.loading import LOADS, Layer, Subject, Verdict, fails, refuses

# The components that each pipeline loads; the first removes the noise, the others are text encoders.
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "animatediff": ("unet",),
    "sd1": ("unet", "text_encoder"),
    "sd2": ("unet", "text_encoder"),
    "sdxl": ("unet", "text_encoder", "text_encoder_2"),
    "sdxl-refiner": ("unet", "text_encoder_2"),
    "wuerstchen": ("prior", "text_encoder"),
}
# The text encoders whose installed class (transformers ≥ 5.6) has no `text_model.` level.
_FLAT = ("text_encoder",)
_KOHYA = ("lora_te_", "lora_unet_", "lora_te1_", "lora_te2_")
_RENAMED = (".lora_down.weight", ".lora_up.weight", ".alpha")
# The first words of kohya's two namings of a UNet's blocks (`lora_unet_input_blocks_…`, `lora_unet_down_blocks_…`).
_SGM = ("input", "middle", "output")
_NOT_SGM = ("down", "mid", "up")
_SGM_STARTS = tuple(f"lora_unet_{word}_" for word in _SGM)
_PEFT_ENDS = (".lora_A.weight", ".lora_B.weight")
_OLD_ENDS = (".lora.down.weight", "_lora.down.weight")
_TEXT_LINEARS = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2")

LEFT_OVER = fails("refuses the file: a kohya file may hold lora_down, lora_up and alpha alone", "run")
NO_LORA = fails("refuses the file: a key has no `lora` in it", "run")
METADATA_TWICE = fails("refuses the file: it has alpha tensors and lora_adapter_metadata", "run")
METADATA_PARTLY = fails("refuses the file: lora_adapter_metadata leaves a component out", "run")
METADATA_LEVEL = fails("refuses the file: lora_adapter_metadata spells the text encoder with text_model.", "run")
DORA_PARTLY = fails("refuses the file: DoRA on some layers of a component alone", "run")
NO_FACTORS = fails("refuses the file: no factor of a component is spelt in a way that it knows", "run")
OLD_TEXT_NAMES = fails("refuses the file: the text encoder's layers are of a sort that hides how they are spelt", "run")
PROJECTION_RANK = fails("refuses the file: text_projection has a rank of its own and no metadata says so", "run")
UNNAMED = fails("left out with a warning: the keys do not begin with the name of a component", "run")
NOT_IN_PIPELINE = fails("left out: its pipeline has no such component", "read")
FIRST_KEY = fails("left out with a warning: .lora.down beside .lora_A in one component", "run")
SPELLING = fails("left out with a warning: the ends of the keys are none that it knows", "run")
NO_OUT_PROJ = fails("left out: q, k and v of a text encoder are read only where an out_proj is adapted too", "run")
SGM_HALF = fails("left out without a word: the file names other blocks in diffusers' way", "run")
EMBEDDING = fails("left out with a warning: add_embedding is renamed wrongly", "run")
ALPHA_ATTENTION = fails("scaled wrongly: in UNet attention every layer gets the commonest alpha", "run")
ALPHA_ABSENT = fails("scaled wrongly: a layer without alpha gets the commonest alpha of the others", "run")
ALPHA_TEXT = fails("scaled wrongly: in a text encoder every layer gets the commonest alpha", "run")
ALPHA_FREE = fails("scaled wrongly: alpha stands where it does not look", "read")
DORA_SCALE = fails("wrong: dora_scale is dropped, the rest applied as a plain LoRA", "run")
BARE_MAGNITUDE = fails("wrong: in a text encoder the magnitude is dropped unless its key ends in .weight", "run")
NOT_LORA = fails("left out: not a LoRA of two factors", "read")


NO_MODULE = refuses("its names are none of the UNet's modules")
NOT_A_MODULE = fails("left out: its name is none of the UNet's modules", "run")
OF_REFINER = refuses("it takes the refiner's blocks for those of the base")


class _Refused(Exception):
    """The loader raises: no adapter of the file is loaded."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__()
        self.verdict = verdict


def stable_diffusion(subject: Subject) -> list[Verdict]:
    """A verdict for every layer, in order."""
    try:
        return _followed(subject)
    except _Refused as refused:
        return [refused.verdict] * len(subject.layers)


def _followed(subject: Subject) -> list[Verdict]:
    keys = [key for key in subject.keys if not key.endswith(".dora_scale")]
    kohya = all(key.startswith(_KOHYA) for key in keys)
    if kohya and not all(key.endswith(_RENAMED) for key in keys):
        raise _Refused(LEFT_OVER)
    if not kohya and not all("lora" in key for key in keys):
        raise _Refused(NO_LORA)
    if kohya and subject.has_diffusers_metadata and any(key.endswith(".alpha") for key in keys):
        raise _Refused(METADATA_TWICE)
    if kohya and subject.architecture == "sdxl-refiner" and any(key.startswith(_SGM_STARTS) for key in keys):
        raise _Refused(OF_REFINER)
    verdicts: list[Verdict] = [UNNAMED] * len(subject.layers)
    named = {stem.split("_", 4)[2] for layer in subject.layers if (stem := layer.stem).startswith("lora_unet_")}
    both = not named.isdisjoint(_SGM) and not named.isdisjoint(_NOT_SGM)
    for component, places in subject.by_component.items():
        if component not in COMPONENTS[subject.architecture]:
            for at in places:
                verdicts[at] = NOT_IN_PIPELINE
            continue
        mine = [at for at in places if kohya or subject.layers[at].stem.startswith(f"{component}.")]
        if kohya and both and component == "unet":
            for at in [at for at in mine if subject.layers[at].stem.startswith(_SGM_STARTS)]:
                verdicts[at] = SGM_HALF
                mine.remove(at)
        if mine:
            layers = [subject.layers[at] for at in mine]
            names = _text if component.startswith("text_encoder") else _unet
            spelt = names(subject, layers, kohya=kohya)
            for at, verdict in zip(mine, _scaled(subject, component, layers, spelt, kohya=kohya), strict=True):
                verdicts[at] = verdict
    return verdicts


def _unet(subject: Subject, layers: Sequence[Layer], *, kohya: bool) -> list[Verdict]:
    """Whether the keys of the UNet's layers are understood: old ends are renamed only if the first key has one."""
    start = f"{COMPONENTS[subject.architecture][0]}."
    first = next((key for key in subject.keys if key.startswith(start) and not key.endswith(".dora_scale")), "")
    renames = kohya or "lora_A" not in first
    found = []
    for layer in layers:
        end = layer.keys.get("down", "")
        if layer.kind != "lora" or "mid" in layer.marks:
            found.append(NOT_LORA)
        elif layer.sort.native and end.endswith(_PEFT_ENDS) and not layer.stem.endswith(layer.path):
            found.append(NOT_A_MODULE)
        elif kohya:
            found.append(EMBEDDING if layer.stem.startswith("lora_unet_add_embedding_") else LOADS)
        elif end.endswith(_PEFT_ENDS):
            found.append(LOADS)
        elif end.endswith(_OLD_ENDS):
            found.append(LOADS if renames else FIRST_KEY)
        else:
            found.append(SPELLING)
    ranked = [layer for layer in layers if "lora_B" in layer.keys.get("up", "")]
    if NOT_A_MODULE in found and not any(verdict in (LOADS, EMBEDDING) for verdict in found):
        raise _Refused(NO_MODULE)
    if not ranked and not any(verdict in (LOADS, EMBEDDING) for verdict in found):
        raise _Refused(NO_FACTORS)
    return found


def _text(subject: Subject, layers: Sequence[Layer], *, kohya: bool) -> list[Verdict]:
    """The same for a text encoder, whose loader guesses one spelling for all of its layers."""
    ends = [_text_end(layer, kohya=kohya) for layer in layers]
    old = any(name == "old" and path.endswith("out_proj") for name, path in ends)
    if not old and not any(name == "peft" for name, _ in ends):
        if not any(name == "linear" for name, _ in ends):
            raise _Refused(OLD_TEXT_NAMES)
    elif not old and not any(name == "linear" or (name == "peft" and "self_attn" in path) for name, path in ends):
        raise _Refused(OLD_TEXT_NAMES)
    found = []
    for layer, (name, _) in zip(layers, ends, strict=True):
        if layer.kind != "lora" or "mid" in layer.marks:
            found.append(NOT_LORA)
        elif name == "old":
            found.append(LOADS if old else NO_OUT_PROJ)
        else:
            found.append(SPELLING if name == "unknown" else LOADS)
    ranked = [
        layer for layer, verdict in zip(layers, found, strict=True) if verdict is LOADS and _is_linear(layer.path)
    ]
    if not ranked and not subject.has_diffusers_metadata:
        raise _Refused(NO_FACTORS)
    if not subject.has_diffusers_metadata:
        common = Counter(layer.adapter.rank for layer in ranked).most_common(1)[0][0]
        if any(layer.path == "text_projection" and layer.adapter.rank != common for layer in layers):
            raise _Refused(PROJECTION_RANK)
    return found


def _is_linear(path: str) -> bool:
    return path.endswith(_TEXT_LINEARS)


def _text_end(layer: Layer, *, kohya: bool) -> tuple[str, str]:
    """How the loader sees a layer's key ("old": `to_q_lora.down`), and the path."""
    key, path = layer.keys.get("down", ""), layer.path
    if kohya:
        return ("old" if "self_attn" in path else "linear" if "mlp" in path else "projection"), path
    if key.endswith(".lora_A.weight"):
        return "peft", path
    if key.endswith("_lora.down.weight"):
        return "old", path
    if key.endswith(".lora_linear_layer.down.weight"):
        return "linear", path
    if key.endswith("text_projection.lora.down.weight"):
        return "projection", path
    return "unknown", path


def _scaled(
    subject: Subject, component: str, layers: Sequence[Layer], spelt: Sequence[Verdict], *, kohya: bool
) -> list[Verdict]:
    """The verdicts once alphas and DoRA are looked at."""
    stated = subject.adapters.metadata.get(DIFFUSERS_KEY)
    block = None
    if stated is not None:
        block = by_component(stated, path=subject.reading.opened.name).get(component)
        if not block:
            raise _Refused(METADATA_PARTLY)
        targets = block.get("target_modules")
        if component in _FLAT and isinstance(targets, list) and any("text_model." in str(name) for name in targets):
            raise _Refused(METADATA_LEVEL)
    magnitudes = [any(mark.startswith(".lora_magnitude") for mark in layer.marks) for layer in layers]
    if any(magnitudes) and not all(magnitudes):
        raise _Refused(DORA_PARTLY)
    # Pairs of integers: they are counted and compared ten times as fast as the fractions that they stand for.
    alphas = [value.as_integer_ratio() if (value := layer.adapter.alpha.value) else (0, 1) for layer in layers]
    stored = [alpha for layer, alpha in zip(layers, alphas, strict=True) if "alpha" in layer.sort.marks]
    common = Counter(stored).most_common(1)[0][0] if stored else None
    found = []
    for layer, alpha, verdict in zip(layers, alphas, spelt, strict=True):
        if verdict is not LOADS:
            found.append(verdict)
        elif ".dora_scale" in layer.marks:
            found.append(DORA_SCALE)
        elif ".lora_magnitude_vector" in layer.marks and component.startswith("text_encoder"):
            found.append(BARE_MAGNITUDE)
        elif block is None and "alpha elsewhere" in layer.marks:
            found.append(ALPHA_FREE)
        elif kohya and common is not None and "alpha" not in layer.marks:
            found.append(LOADS if (layer.adapter.rank, 1) == common else ALPHA_ABSENT)
        elif kohya and alpha != common and not _keeps_alpha(component, layer.path):
            found.append(ALPHA_ATTENTION if component == "unet" else ALPHA_TEXT)
        else:
            found.append(LOADS)
    return found


def _keeps_alpha(component: str, path: str) -> bool:
    """Whether an alpha of a layer's own survives the renaming: its pattern must still name the module."""
    if component == "unet":
        return not (".attn1." in path or ".attn2." in path)
    return component not in _FLAT and "self_attn" not in path
