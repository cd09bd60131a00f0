"""convert --names: how the layers of a language model are to be called, as its type has them or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from loratools.adapters.adapter import Adapter
from loratools.adapters.kind import kind_of
from loratools.architectures.llm import PREFIX, architecture_id
from loratools.architectures.llm_namings import FUSED_QKV, LanguageNaming, shares, stacked_name
from loratools.errors import ArchitectureMismatch, NotRepresentable, UsageError
from loratools.operations.lora import Lora, tables

Names = Literal["split", "whole"]


class _Own(NamedTuple):
    """What a model type has as one: the experts of a layer, gate and up, query, key and value; and how checkpoints call
    single experts ("" where there is no such spelling).
    """

    stacked: bool = False
    gate_up: bool = False
    qkv: bool = False
    each: Literal["each", "mixtral", ""] = "each"


_TYPES = {
    architecture_id(name): own
    for name, own in (
        ("deepseek_v3", _Own(stacked=True)),
        ("glm4", _Own(gate_up=True)),
        ("gpt_oss", _Own(stacked=True, each="")),
        ("mixtral", _Own(stacked=True, each="mixtral")),
        ("phi3", _Own(gate_up=True, qkv=True)),
        ("qwen2_moe", _Own(stacked=True)),
        ("qwen3_moe", _Own(stacked=True)),
    )
}


def language_names(lora: Lora, names: Names | None, runtime: str | None = None) -> LanguageNaming | None:
    """The naming to write; None keeps the source's own. vLLM wants experts one by one.

    Raises UsageError for a model that is no language model, ArchitectureMismatch where several types fit that differ in
    this, NotRepresentable where the shares of fused rows are not known, or single experts have no name.
    """
    adapters = lora.adapters
    paths = [path for item in adapters for path in item.target.paths]
    experts = any(stacked_name(path) for path in paths)
    if names is None and not (runtime == "vllm" and experts):
        return None
    if tables(lora) or not lora.candidates[0].startswith(PREFIX.rstrip("-")):
        raise UsageError(
            f"--names is for language models, and this is {lora.candidates[0]}", path=lora.name, hint="leave it away"
        )
    own = _own(lora, experts=experts, whole=names == "whole")
    if names == "whole":
        return LanguageNaming("stacked" if own.stacked and experts else "each", own.gate_up, _ratio(lora, own))
    if experts and not own.each:
        raise NotRepresentable(
            "GPT-OSS lays the rows of gate and up out in turn, and no spelling has its experts one by one",
            path=lora.name,
            hint="--to peft keeps its parameters",
        )
    unknown = next((item for item in adapters if item.target.paths[0].endswith(FUSED_QKV)), None)
    if names == "split" and unknown is not None:
        raise NotRepresentable(
            f"{unknown.target.name}: nothing tells how its rows are shared out among query, key and value",
            path=lora.name,
            key=unknown.origin.stem if unknown.origin else None,
            hint="an adapter of o_proj beside it would tell",
        )
    if names is None:  # for vLLM: what is fused stays, as it has those layers, too
        spelt = LanguageNaming.named(next(iter(lora.adapter_set.dialect.spellings.values())).naming)
        return (spelt or LanguageNaming())._replace(experts=own.each or "each")
    return LanguageNaming(own.each or "each")


def _own(lora: Lora, *, experts: bool, whole: bool) -> _Own:
    """What the model type has as one; the types that fit must agree on what is asked."""
    settled = lora.architecture is not None and lora.architecture.startswith(PREFIX)
    ids = (lora.architecture or "",) if settled else lora.candidates
    strange = next((name for name in ids if name not in _TYPES), None)
    if experts and strange is not None:
        raise NotRepresentable(
            f"how the experts of {strange} lie in their parameter is not known",
            path=lora.name,
            hint="--to peft keeps their names; --arch says a type that is known, such as llm-mixtral",
        )
    found = {name: _TYPES.get(name, _Own()) for name in ids}
    said = {(own.gate_up, own.qkv, own.stacked or not experts) if whole else own.each for own in found.values()}
    if len(said) > 1 and (whole or experts):
        raise ArchitectureMismatch(
            f"the file fits {' and '.join(ids[:4])}, which name these layers differently",
            path=lora.name,
            hint=f"say which with --arch {next(iter(name for name in ids if name in _TYPES), ids[0])}",
            candidates=list(ids),
        )
    return found[ids[0]]


def _ratio(lora: Lora, own: _Own) -> tuple[int, ...]:
    """The shares of query, key and value, by the rows of those that are there; NotRepresentable where too few are."""
    if not own.qkv:
        return ()
    known = [item for item in lora.adapters if len(item.target.paths) > 1 and item.target.paths[0].endswith("q_proj")]
    if known:
        return known[0].target.ratio
    rows = {leaf: _rows(lora.adapters, f"self_attn.{leaf}") for leaf in ("q_proj", "k_proj", "v_proj")}
    query, key = rows["q_proj"], rows["k_proj"] or rows["v_proj"]
    if query and key:
        return shares(query + 2 * key, query)
    if any(rows.values()):
        missing = "k_proj" if query else "q_proj"
        raise NotRepresentable(
            f"nothing tells how large {missing} is, which the fused layer has beside the others",
            path=lora.name,
            hint="--names split keeps them apart",
        )
    return ()


def _rows(adapters: Sequence[Adapter], end: str) -> int | None:
    """The rows of the first layer of such a name."""
    found = (item for item in adapters if item.target.paths[0].endswith(end))
    return next((shape[0] for item in found if (shape := kind_of(item.kind).weight_shape(item.factors))), None)
