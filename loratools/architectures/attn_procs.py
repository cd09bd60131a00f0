"""The names of diffusers' attention processors (0.12 to 0.16), which held LoRA layers of their own.

`attn1.to_q` is `attn1.processor.to_q_lora` there, and the output's index is left out: `to_out.0` is `to_out_lora`.
Text encoders have no processors: theirs stand beside the projections, under a UNet's words.
"""

from __future__ import annotations

from collections.abc import Iterator

from loratools.architectures.naming import Naming
from loratools.architectures.rules import Rule, rename

NAME = "attn-procs"
LEAVES = (
    # the layer       its LoRA
    ("to_q",          "to_q_lora"),
    ("to_k",          "to_k_lora"),
    ("to_v",          "to_v_lora"),
    ("to_out.0",      "to_out_lora"),
    ("add_k_proj",    "add_k_proj_lora"),
    ("add_v_proj",    "add_v_proj_lora"),
)  # fmt: skip
TEXT_LEAVES = (
    ("q_proj",        "to_q_lora"),
    ("k_proj",        "to_k_lora"),
    ("v_proj",        "to_v_lora"),
    ("out_proj",      "to_out_lora"),
)  # fmt: skip


def attn_procs(naming: Naming, name: str = NAME) -> Naming:
    """The processor names of every attention in a naming of a UNet (or a transformer of its sort)."""
    return Naming(name, tuple(_rules(naming, LEAVES, "processor.")))


def text_attn_procs(naming: Naming) -> Naming:
    """The names in a text encoder, whose attentions have no processor level."""
    return Naming(NAME, tuple(_rules(naming, TEXT_LEAVES, "")))


def early_text_attn_procs(naming: Naming) -> Naming:
    """The first release's names: each projection had a whole processor, of which only its own layer was ever run."""
    rules = []
    for rule in naming.rules:
        for ours, theirs in TEXT_LEAVES:
            if rule.native.endswith(f".{ours}"):
                rules.append(rename(rule.canonical[0], f"{rule.native}.{theirs}"))
    return Naming(f"{NAME}-early", tuple(rules))


def _rules(naming: Naming, leaves: tuple[tuple[str, str], ...], level: str) -> Iterator[Rule]:
    ends = tuple(f".{ours}" for ours, _ in leaves)
    for rule in naming.rules:
        if len(rule.canonical) == 1 and rule.native.endswith(ends):  # few are: one look at most rows
            for ours, theirs in leaves:
                if rule.native.endswith(f".{ours}"):
                    yield rename(rule.canonical[0], f"{rule.native.removesuffix(ours)}{level}{theirs}")
