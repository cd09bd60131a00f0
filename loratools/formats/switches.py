"""Adapters of single experts put together for MLX, which knows one layer for all of a mixture (`switch_mlp`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.regroup import Step
from loratools.architectures.llm_namings import (
    LanguageNaming,
    number_of,
    stacked_name,
    switch_name,
)
from loratools.errors import NotRepresentable
from loratools.formats.spell import Writer, suffix_of
from loratools.formats.stacks import Pile, Piled, levelled
from loratools.model import Alpha, Spelling, Target
from loratools.tensors.lazy import LazyTensor, stack_rows

# How mlx-lm's classes call the module of the experts: by the model's type.
_WORDS = {"llm-deepseek-v3": "each", "llm-mixtral": "mixtral", "llm-qwen2-moe": "each", "llm-qwen3-moe": "each"}


def switch_naming(adapters: AdapterSet, name: str, own: Spelling | None) -> str:
    """The naming `name` for MLX: experts of one layer together, under the name that the model's class has for them.

    Raises NotRepresentable where the model's type, which tells the name, is not known.
    """
    first = next((item for item in adapters.adapters if stacked_name(item.target.paths[0])), None)
    naming = LanguageNaming.named(name)
    if first is None or naming is None:
        return name
    before = LanguageNaming.named(own.naming) if own else None
    if before and before.switched:
        return before.name
    words = {_WORDS.get(known) for known in adapters.architectures}
    word = words.pop() if len(words) == 1 else None
    if word is None:
        raise NotRepresentable(
            f"{first.target.name}: mlx calls the experts of a layer by the model's type, and this fits "
            f"{', '.join(adapters.architectures[:4])}",
            path=first.origin.file if first.origin else None,
            key=first.origin.stem if first.origin else None,
            hint=f"say which with --arch: {', '.join(_WORDS)} are known",
        )
    return naming._replace(experts="mixtral" if word == "mixtral" else "each", switched="switch").name


class Switched(Piled):
    """What MLX stacks: the piles are whole layers of experts, and no configuration speaks of parameters."""

    __slots__ = ()

    def tensors(self, writer: Writer) -> dict[str, LazyTensor]:
        """The factors of every pile by key."""
        return {
            f"{writer.spelling.prefix}{pile.parameter}{suffix_of(writer.spelling.suffixes, 'lora', role)}": tensor
            for pile in self.piles
            for role, tensor in (("down", pile.down), ("up", pile.up))
        }


def switched(members: Sequence[Adapter], writer: Writer) -> Piled:
    """The adapters of one component, experts stacked; missing experts and ranks become zeros.

    Raises NotRepresentable for an expert's adapter that is no pair of matrices.
    """
    plain: list[Adapter] = []
    found: dict[str, dict[int, Adapter]] = {}
    for item in members:
        name = switched_as(item, writer)
        if name is None:
            plain.append(item)
            continue
        if set(item.factors) != {"down", "up"}:
            raise NotRepresentable(
                f"{item.target.name}: mlx changes experts by two matrices, and this has {', '.join(item.factors)}",
                path=item.origin.file if item.origin else None,
                key=item.origin.stem if item.origin else None,
                hint="--to peft holds more",
            )
        found.setdefault(name, {})[number_of(item.target.paths[0])] = item
    count = 1 + max((number for experts in found.values() for number in experts), default=-1)
    done = [_pile(name, experts, count, writer) for name, experts in found.items()]
    return Switched(plain, [pile for pile, _ in done], [step for _, step in done])


def switched_as(item: Adapter, writer: Writer) -> str | None:
    """The layer of all experts that one expert's is a part of, as MLX names it; None for any other layer."""
    naming = writer.naming
    if not isinstance(naming, LanguageNaming) or not naming.switched:
        return None
    return switch_name(item.target.paths[0], mixtral=naming.experts == "mixtral")


def _pile(name: str, experts: Mapping[int, Adapter], count: int, writer: Writer) -> tuple[Pile, Step]:
    members = list(experts.values())
    rank = max(item.rank or 0 for item in members)
    pairs = levelled({number: item.factors for number, item in experts.items()}, rank, count)
    down, up = (stack_rows([pair[at] for pair in pairs]) for at in (0, 1))
    rows, columns = up.shape[0] // count, down.shape[1]
    rowwise = isinstance(writer.naming, LanguageNaming) and writer.naming.switched == "switch-rows"
    pile = Pile(
        name, down if rowwise else down.reshape(count, rank, columns), up.reshape(count, rows, rank), rank, Alpha()
    )
    padded = len(experts) < count or any(item.rank != rank for item in members)
    target = Target(members[0].target.component, (name,))
    return pile, Step(target, "pad" if padded else "block", f"{len(experts)} of {count} experts at rank {rank}")
