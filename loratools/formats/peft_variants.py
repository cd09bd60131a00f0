"""Configurations of PEFT's LoRA by which the same two matrices mean something else, or are for another base model."""

from __future__ import annotations

from collections.abc import Iterable

from loratools.errors import UnreadableForm
from loratools.formats.opening import Part
from loratools.tensors.gguf_check import INVOCATION

# field of the configuration → what an adapter does for which it is set
VARIANTS = (
    ("alora_invocation_tokens", "changes only the tokens after an invocation (aLoRA)"),
    ("arrow_config",            "is chosen among others token by token (Arrow)"),
    ("kasa_config",             "is for a base whose weights it cut when training began (KaSA)"),
    ("use_bdlora",              "stores the blocks of its factors alone (BD-LoRA)"),
    ("use_qalora",              "has one input for each group of the base's (QA-LoRA)"),
)  # fmt: skip
MOVED = ("corda", "loftq", "lora_ga", "olora", "pissa")
"""Ways to begin that take the adapter's first delta out of the base model's weights."""


def refuse_variants(parts: Iterable[Part], *, path: str) -> None:
    """Raise UnreadableForm for a LoRA whose delta is not scale · up · down of its whole input."""
    for part in parts:
        stated = {field: what for field, what in VARIANTS if part.config and part.config.get(field)}
        form, reader = "peft", "PEFT itself"
        if INVOCATION in part.source.metadata:
            stated, form, reader = {INVOCATION: VARIANTS[0][1]}, "gguf", "llama.cpp"
        for field, what in stated.items():
            raise UnreadableForm(
                f"the adapter {what}: its factors are no change of a weight",
                path=path,
                key=field,
                hint=f"{reader} loads it",
                form=form,
                kinds=("lora",),
            )


def moved_bases(parts: Iterable[Part]) -> list[str]:
    """A warning for an adapter that was begun in a way which changed the base model, and saved as it was trained."""
    begun = [str(part.config.get("init_lora_weights", "")).lower() for part in parts if part.config]
    found = {name for name in MOVED if any(word.startswith(name) for word in begun)}
    return [f"begun by {name}, which changes the base: it is right only over that base" for name in sorted(found)]
