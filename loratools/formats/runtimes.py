"""The runtimes that files are for: what each would load of a file, and the format to write for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from loratools.errors import NotRepresentable, UsageError, nearest
from loratools.formats.loading import Loading, Subject, Verdict, loading, subject_of
from loratools.formats.loads_comfyui import by_comfyui, not_in_comfyui
from loratools.formats.loads_diffusers import LOADED, by_diffusers, not_in_diffusers
from loratools.formats.loads_others import (
    A1111_MODELS,
    STABLE_DIFFUSION,
    by_a1111,
    by_kohya,
    by_peft,
    by_vllm,
    not_in_a1111,
    not_kohyas,
    refused_by_vllm,
)
from loratools.formats.parse import Reading


class Runtime(NamedTuple):
    """A row of the registry: how it judges a file, which formats it reads, the one to write first, and what it lacks.

    A format stands there with the architectures that it is right for; none means all. `lacks` says of an architecture
    why the runtime takes no adapter of it, or that nobody knows.
    """

    id: str
    title: str
    judge: Callable[[Subject], Sequence[Verdict]]
    formats: tuple[tuple[str, tuple[str, ...]], ...]
    lacks: Callable[[str], Verdict | None] = lambda _: None


RUNTIMES: tuple[Runtime, ...] = (
    Runtime(
        "diffusers",
        "load_lora_weights of the architecture's pipeline",
        by_diffusers,
        (("diffusers", ()),),
        not_in_diffusers,
    ),
    Runtime("peft", "PeftModel.from_pretrained, one folder a component", by_peft, (("peft", ()),)),
    Runtime("comfyui", "ComfyUI", by_comfyui, (("kohya", (*STABLE_DIFFUSION, "flux1")), ("comfy", ())), not_in_comfyui),
    Runtime("a1111", "A1111 and its kin", by_a1111, (("kohya", A1111_MODELS),), not_in_a1111),
    Runtime("kohya", "sd-scripts, musubi-tuner, LyCORIS", by_kohya, (("kohya", ()),), not_kohyas),
    Runtime("vllm", "vLLM", by_vllm, (("peft", ("llm",)),)),
)


class Choice(NamedTuple):
    """What `convert --for` writes: the format, "fold" where alpha goes into the factors, and which components."""

    to: str
    alpha: str | None = None
    components: tuple[str, ...] | None = None


def runtime_of(name: str) -> Runtime:
    """The runtime of that id; UsageError with the nearest one where there is none."""
    found = next((row for row in RUNTIMES if row.id == name), None)
    if found is None:
        known = [row.id for row in RUNTIMES]
        raise UsageError(
            f"unknown runtime {name!r}", hint=nearest(name, known) or f"known runtimes: {', '.join(known)}"
        )
    return found


def loads(reading: Reading, runtime: str | None = None) -> tuple[Loading, ...]:
    """What one runtime, or each of them, would load of a parsed file with the right delta."""
    subject = subject_of(reading)
    rows = RUNTIMES if runtime is None else (runtime_of(runtime),)
    return tuple(loading(row.id, subject, row.judge(subject)) for row in rows)


def choose(
    name: str,
    reading: Reading,
    components: Sequence[str] | None = None,
    *,
    plain: bool = False,
    allow_lossy: bool = False,
) -> Choice:
    """The format, alpha policy and components of a file for a runtime.

    `components` are those that the caller asked for, `plain` says that every layer will be made a LoRA. Raises
    NotRepresentable where the runtime has no way to load the file, or loads a part of its components alone unless
    `allow_lossy`.
    """
    from loratools.formats.registry import FORMATS  # what writes is no part of asking who loads what

    runtime = runtime_of(name)
    subject = subject_of(reading)
    family = "llm" if subject.architecture.split("-")[0] == "llm" else subject.architecture
    known = {row.id for row in FORMATS}
    fitting = [to for to, only in runtime.formats if to in known and (not only or family in only)]
    to = next((to for to in fitting[:-1] if _holds(to, subject)), fitting[-1] if fitting else None)
    lacking = runtime.lacks(subject.architecture)
    if to is None or lacking is not None:
        why = f": {lacking.reason.text}" if lacking is not None and lacking.reason is not None else ""
        raise NotRepresentable(
            f"{runtime.id} is not known to load a LoRA for {subject.architecture}{why}",
            path=reading.opened.name,
            hint="--to writes a format, whatever reads it",
        )
    asked = tuple(components) if components else None
    if runtime.id == "vllm":
        refused = refused_by_vllm(subject, plain=plain)
        if refused is not None and refused.reason is not None:
            raise NotRepresentable(f"vllm {refused.reason.text}", path=reading.opened.name)
        # One alpha and one rank hold for all of its layers: a scale of 1 is the only one that fits every rank.
        return Choice(to, "fold" if len({layer.adapter.scale for layer in subject.layers}) > 1 else None, asked)
    present = asked or tuple(subject.by_component)
    loaded = LOADED.get(family, present) if runtime.id == "diffusers" else present
    left_out = [item for item in present if item not in loaded]
    if left_out and not allow_lossy:
        raise NotRepresentable(
            f"{runtime.id} loads no {' and no '.join(left_out)} of {subject.architecture}",
            path=reading.opened.name,
            hint="--allow-lossy leaves it out; --to writes all of it",
        )
    return Choice(to, None, tuple(item for item in present if item in loaded) if left_out else asked)


def _holds(to: str, subject: Subject) -> bool:
    """Whether a format has a place for norms and weights that are put in the model's place, if there are any."""
    from loratools.formats.limits import refusal
    from loratools.formats.registry import format_of

    return all(
        refusal(layer.adapter, format_of(to)) is None
        for layer in subject.layers
        if "replacement" in layer.adapter.factors
    )
