"""What diffusers' other pipelines make of a file, by its spelling: rows as reported of 0.42.1 on small models."""

from __future__ import annotations

from loratools.formats.loading import LOADS, NOT_KNOWN, Subject, Verdict, fails
from loratools.formats.loads_rows import Row, by_rows
from loratools.formats.loads_stable_diffusion import COMPONENTS, stable_diffusion

# The components that the pipelines load, beside the Stable Diffusion family's.
LOADED: dict[str, tuple[str, ...]] = {
    **COMPONENTS,
    "flux1": ("transformer", "text_encoder"),
    "flux2": ("transformer",),
    "chroma": ("transformer",),
    "sd3": ("transformer", "text_encoder", "text_encoder_2"),
    "wan2.1": ("transformer",),
    "wan2.2": ("transformer", "transformer_2"),
    "hunyuan-video": ("transformer",),
    "ltx-video": ("transformer",),
    "qwen-image": ("transformer",),
    "z-image": ("transformer",),
    "sana": ("transformer",),
    "lumina2": ("transformer",),
    "auraflow": ("transformer",),
    "cogvideox": ("transformer",),
    "mochi": ("transformer",),
    "krea2": ("transformer",),
    "anima": ("transformer", "text_conditioner"),
    "ltx2": ("transformer", "connectors"),
}
WITHOUT_LOADER = ("pixart", "kandinsky2.2", "stable-cascade")
_RAN = tuple(name for name in LOADED if name not in COMPONENTS)[:10]
_KINDS = ("boft", "full", "glora", "ia3", "loha", "lokr", "norm", "oft")

ROWS: tuple[Row, ...] = (
    Row(fails("the pipeline has no LoRA loader", "reported"), architectures=WITHOUT_LOADER),
    Row(fails("no name of a component before the layers': refused or left out", "read"), families=("hcp",)),
    # Flux by kohya's own names: read at the real width, by a converter that keeps each alpha
    Row(
        fails("refuses the file: kinds other than LoRA are not renamed", "reported"),
        ("flux1",),
        styles=("kohya",),
        kinds=_KINDS,
    ),
    Row(
        fails("left out: the converter forgets the component before these names", "reported"),
        ("flux1",),
        styles=("kohya",),
        native=True,
        paths=("x_embedder", "context_embedder", "time_text_embed.", "proj_out", "norm_out."),
    ),
    Row(LOADS, ("flux1",), styles=("kohya",), components=("transformer",), native=True, unless=(".dora_scale", "mid")),
    Row(fails("not a LoRA of two factors: refused or left out", "reported"), architectures=_RAN, kinds=_KINDS),
    Row(fails("wrong: dora_scale is dropped, or the file not loaded", "reported"), _RAN, marks=(".dora_scale",)),
    Row(fails("the name of an adapter inside the keys: refused or left out", "reported"), _RAN, marks=("named",)),
    Row(fails("no component before the names: refused or left out", "reported"), _RAN, styles=("bare",)),
    # base_model.model.
    Row(LOADS, ("flux2",), styles=("peft",), families=("peft",)),
    Row(fails("base_model.model. is no component: refused or left out", "reported"), _RAN, styles=("peft",)),
    # transformer.….lora_A
    Row(
        fails("scaled wrongly: alpha stands where it does not look", "read"),
        styles=("component",),
        families=("peft",),
        marks=("alpha elsewhere",),
        metadata=False,
    ),
    Row(LOADS, ("flux1", "chroma"), styles=("component",), families=("peft",), marks=("alpha",)),
    Row(
        fails("an alpha tensor beside lora_A and lora_B: refused", "reported"),
        _RAN,
        styles=("component",),
        families=("peft",),
        marks=("alpha",),
    ),
    Row(LOADS, _RAN, styles=("component",), families=("peft",)),
    Row(
        fails("lora_down and lora_up under dotted names: refused, left out or scaled wrongly", "reported"),
        _RAN,
        styles=("component",),
        families=("kohya",),
    ),
    # kohya's flat names
    Row(
        fails("flat names of another trainer's: refused or left out", "reported"),
        _RAN,
        styles=("kohya",),
        words=("transformer",),
    ),
    Row(LOADS, ("flux2", "wan2.1", "z-image"), styles=("kohya",), native=True),
    Row(LOADS, ("qwen-image", "z-image"), styles=("kohya",), native=False),
    Row(fails("left out: no loader for these names", "reported"), ("sd3",), styles=("kohya",)),
    Row(
        fails("diffusers' names, flattened: refused or left out", "reported"),
        _RAN,
        styles=("kohya",),
        components=("transformer",),
        native=False,
    ),
    # diffusion_model.
    Row(LOADS, ("flux2", "wan2.1"), styles=("comfy",), families=("peft",), native=True),
    Row(LOADS, ("flux2", "ltx-video", "qwen-image", "z-image"), styles=("comfy",), families=("peft",), native=False),
    Row(LOADS, ("wan2.1",), styles=("comfy",), families=("kohya",), native=True),
    Row(
        fails("diffusion_model. before diffusers' names: refused or left out", "reported"),
        _RAN,
        styles=("comfy",),
        native=False,
    ),
    Row(fails("left out: no loader for these names", "reported"), ("sd3",), styles=("comfy",)),
    Row(fails("diffusion_model. before the original names is not read", "reported"), ("flux1",), styles=("comfy",)),
)


def by_diffusers(subject: Subject) -> list[Verdict]:
    """A verdict for every layer: the Stable Diffusion family by its loader's steps, the others by the rows."""
    if subject.folder:
        return [fails("a PEFT folder: refused or left out", "reported")] * len(subject.layers)
    if subject.architecture.split("-")[0] == "llm":
        return [fails("no pipeline has a language model of this sort", "read")] * len(subject.layers)
    if subject.architecture in COMPONENTS:
        return stable_diffusion(subject)
    loaded = LOADED.get(subject.architecture)
    found = by_rows(ROWS, subject, NOT_KNOWN)
    return [_loadable(layer.component, loaded, verdict) for layer, verdict in zip(subject.layers, found, strict=True)]


def _loadable(component: str, loaded: tuple[str, ...] | None, verdict: Verdict) -> Verdict:
    if loaded is None or component in loaded or verdict.loads is False:
        return verdict
    return fails(f"left out: its pipeline loads no {component}", "reported")
