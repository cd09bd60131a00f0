"""What diffusers' pipelines make of a file: the loader of its architecture, followed over the keys."""

from __future__ import annotations

from collections.abc import Mapping

from loratools.formats.loading import Subject, Verdict, fails
from loratools.formats.loads_loaders import by_loader
from loratools.formats.loads_stable_diffusion import COMPONENTS, stable_diffusion
from loratools.formats.loads_transformers import BY_ARCHITECTURE

WITHOUT_LOADER: Mapping[str, str] = {
    "hunyuan-dit": "HunyuanDiTPipeline",
    "hunyuan-image": "HunyuanImagePipeline",
    "kandinsky2.2": "KandinskyV22Pipeline",
    "latte": "LattePipeline",
    "longcat-image": "LongCatImagePipeline",
    "omnigen": "OmniGenPipeline",
    "pixart": "PixArtAlphaPipeline",
    "stable-cascade": "StableCascadePriorPipeline",
}
"""The architectures whose pipelines load no adapters, by the pipeline that says so."""

# The components that the pipelines load.
LOADED: Mapping[str, tuple[str, ...]] = {
    **COMPONENTS,
    **{name: loader.components for name, loader in BY_ARCHITECTURE.items()},
    "chroma": ("transformer",),  # its text encoder is a T5, which a loader of CLIPs cannot fill
    "bria-fibo": ("transformer",),
}
SECOND_EXPERT = fails(
    "left out: the second expert is loaded from a file of its own, which names it `transformer`, with "
    "load_into_transformer_2=True",
    "read",
)


def not_in_diffusers(name: str) -> Verdict | None:
    """Why no pipeline loads an adapter of an architecture, or None."""
    if name.split("-", maxsplit=1)[0] == "llm":
        return fails("no pipeline has a language model of this sort", "read")
    pipeline = WITHOUT_LOADER.get(name)
    return None if pipeline is None else fails(f"{pipeline} has no LoRA loader", "read")


def by_diffusers(subject: Subject) -> list[Verdict]:
    """A verdict for every layer."""
    name = subject.architecture
    whole = not_in_diffusers(name)
    if subject.folder and len(subject.reading.opened.parts) > 1:
        whole = fails("PEFT folders, one for each component: its loaders take one file", "read")
    if whole is not None:
        return [whole] * len(subject.layers)
    found = stable_diffusion(subject) if name in COMPONENTS else by_loader(BY_ARCHITECTURE[name], subject)
    return [_loadable(name, layer.component, verdict) for layer, verdict in zip(subject.layers, found, strict=True)]


def _loadable(architecture: str, component: str, verdict: Verdict) -> Verdict:
    if component in LOADED[architecture] or verdict.loads is False:
        return verdict
    if component == "transformer_2":
        return SECOND_EXPERT
    return fails(f"left out: its pipeline loads no {component}", "read")
