"""Forms that are recognised and cannot be read: what they are, why not, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from loratools.architectures import control_lora
from loratools.errors import UnreadableForm, WrongRole
from loratools.formats.collect import Group
from loratools.formats.opening import Part

_BARE = (".lora_down", ".lora_up")


class Form(NamedTuple):
    """One form: its word, the kinds in it, what its keys look like, why it cannot be read, and what can."""

    name: str
    kinds: tuple[str, ...]
    pattern: re.Pattern[str]
    why: str
    hint: str


FORMS = (
    Form(
        "nunchaku",
        ("lora",),
        re.compile(
            r"(?:transformer\.)?(?:single_)?transformer_blocks\.\d+\."
            r"(?:qkv_proj|out_proj|mlp_fc1|mlp_fc2)(?:_context)?\.(?:lora_down|lora_up)"
            r"|(?:transformer\.)?transformer_blocks\.\d+\.mlp_context_fc[12]\.(?:lora_down|lora_up)"
        ),
        "Nunchaku packs its factors for one kernel, and joins them with what 4-bit quantisation left over",
        "give the LoRA that it was made from: Nunchaku itself reads that, too",
    ),
)


def refuse_known(groups: Iterable[Group], rest: Collection[str], *, path: str) -> None:
    """Raise UnreadableForm where a layer is of a form that is known and not read: all of those end in bare words.

    Beside packed weights they are a model's own, among the keys that are left: then WrongRole.
    """
    for group in groups:
        for item in group.found.values():
            if item.cut.suffix in _BARE:
                for form in FORMS:
                    if form.pattern.fullmatch(item.key):
                        if any(key.endswith(".qweight") for key in rest):
                            raise WrongRole("a model in 4 bits, and no adapter", path=path, key=item.key)
                        told = {"form": form.name, "kinds": form.kinds}
                        raise UnreadableForm(form.why, path=path, key=item.key, hint=form.hint, **told)


def refuse_control(parts: Iterable[Part], *, path: str) -> None:
    """Raise WrongRole for a Control-LoRA, whose factors are for another model than the one that an adapter changes."""
    if any(control_lora.MARK in part.source for part in parts):
        raise WrongRole(control_lora.WHY, path=path, key=control_lora.MARK, hint=control_lora.HINT)


def refuse_tuner(parts: Iterable[Part], *, path: str) -> None:
    """Raise UnreadableForm for an adapter of PEFT's in which no factor of any kind is known: VeRA, prompts, …"""
    for part in parts:
        tuner = part.config.get("peft_type") if part.config else None
        if isinstance(tuner, str) and len(part.source):
            raise UnreadableForm(
                f"PEFT's {tuner} is not read, or not as this version of it was saved",
                path=path,
                key=next(iter(part.source)),
                hint="loratools formats lists the kinds that are; PEFT itself can merge it",
                form="peft",
                kinds=(),
            )
