"""Adapters of any kind as plain LoRA, with the base model where their deltas depend on it, and what each one cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.kind import kind_of, require_shape
from loratools.adapters.lora import LORA
from loratools.adapters.to_lora import foreseen, to_lora
from loratools.architectures.architecture import Architecture, shapes
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.weights import Base, BaseWeights, open_base
from loratools.errors import ArchitectureMismatch, NotRepresentable, UsageError
from loratools.formats.opening import Reference
from loratools.operations.lora import Lora
from loratools.operations.references import open_reference
from loratools.operations.working.side_by_side import side_by_side

if TYPE_CHECKING:
    import torch

KINDS = ("lora",)
_PLAIN = frozenset(("down", "up", "up_bias", "bias_diff", "embedding_down", "embedding_up"))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one layer became: from which kind, at which rank, whether by algebra alone, else at which relative error.

    In a plan the error of what is still to be computed is None, and the rank of a decomposition the largest that it may
    need: both are settled later.
    """

    name: str
    kind: str
    rank: int
    exact: bool
    error: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"module": self.name, "from": self.kind, "rank": self.rank, "exact": self.exact, "error": self.error}


@dataclass(frozen=True)
class Plain:
    """A set that is plain LoRA, the adapters of `source` that it was made from, costs by name, what was left out."""

    adapters: AdapterSet
    source: AdapterSet
    costs: Mapping[str, Cost]
    lost: tuple[str, ...]
    base: BaseWeights | None = None

    @property
    def changes(self) -> bool:
        """Whether any adapter is not the one that was read."""
        return any(a is not b for a, b in zip(self.adapters.adapters, self.source.adapters, strict=True))

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be computed that the plan would have to know."""
        return all(cost.error is not None for cost in self.costs.values())


def open_model(reference: Reference, lora: Lora, *, unsafe_pickle: bool = False) -> Base:
    """The base model of an adapter; ArchitectureMismatch, naming both, where no architecture fits the two of them."""
    opened = open_reference(reference, unsafe_pickle=unsafe_pickle)
    base = open_base(opened.name, [(part.component, part.source) for part in opened.parts])
    ours = (lora.architecture,) if lora.architecture else lora.candidates
    if not shared(ours, base.candidates):
        raise ArchitectureMismatch(
            f"the adapter is for {' or '.join(ours)}, the base model is {' or '.join(base.candidates) or 'unknown'}",
            path=opened.name,
            hint="give the base model that the adapter was trained on",
            expected=list(ours),
            found=list(base.candidates),
        )
    return base


def shared(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    """The architectures that both may be; "llm" alone stands for a language model of any type.

    Where there is none, an architecture that took over the other's names and sizes: its adapters look like the other's.
    """
    both = tuple(name for name in ours if name in theirs)
    if not both and "llm" in ours:
        both = tuple(name for name in theirs if name.startswith("llm-"))
    return both or _heirs(theirs, ours) or _heirs(ours, theirs)


def _heirs(names: Sequence[str], elders: Sequence[str]) -> tuple[str, ...]:
    return tuple(known.id for known in ARCHITECTURES if known.id in names and set(known.yields_to) & set(elders))


def as_lora(
    source: AdapterSet,
    known: tuple[Architecture, ...],
    base: BaseWeights | None,
    *,
    rank: int | None,
    error: float | None,
    allow_lossy: bool,
    threads: int = 1,
    foresee: bool = False,
) -> Plain:
    """Every adapter through `adapters.to_lora`; those that are plain LoRA of no larger rank stay as they are.

    With `foresee` no weight is read and nothing is decomposed: ranks are then the largest that may come, errors None.
    `known` are the tables of all architectures that the file may be. Raises NotRepresentable for what no LoRA can hold
    (listed in `lost` with `allow_lossy`) and for a kind that needs a base where there is none, or none of its weight;
    ArchitectureMismatch where a weight has another shape.
    """

    def one(item: Adapter) -> tuple[Adapter, Cost] | str:
        if _is_plain(item) and (rank is None or (item.rank or 0) <= rank):
            return item, Cost(item.target.name, item.kind, item.rank or 0, True, 0.0)
        try:
            return _converted(item, known, base, rank=rank, error=error, foresee=foresee)
        except NotRepresentable as problem:
            told = _named(item, problem)
            if allow_lossy and kind_of(item.kind).name in ("full", "norm"):
                return told.message
            raise told from problem

    made = [one(item) for item in source.adapters] if foresee else side_by_side(one, source.adapters, threads)
    found = [item for item in made if not isinstance(item, str)]
    kept = tuple(old for old, new in zip(source.adapters, made, strict=True) if not isinstance(new, str))
    lost = tuple(item for item in made if isinstance(item, str))
    if not found:
        raise NotRepresentable(
            "none of the layers can be a LoRA", hint="without --to-kind, --to kohya holds most kinds as they are"
        )
    adapters = tuple(item for item, _ in found)
    costs = {cost.name: cost for _, cost in found}
    return Plain(replace(source, adapters=adapters), replace(source, adapters=kept), costs, lost, base)


def _is_plain(item: Adapter) -> bool:
    return item.kind == LORA.name and set(item.factors) <= _PLAIN


def _converted(
    item: Adapter,
    known: tuple[Architecture, ...],
    base: BaseWeights | None,
    *,
    rank: int | None,
    error: float | None,
    foresee: bool,
) -> tuple[Adapter, Cost]:
    kind = kind_of(item.kind)
    shape, weight, bias = _of_base(item, base, read=not foresee)
    make = foreseen if foresee else to_lora
    made = make(item, rank=rank, error=error, base=weight, bias=bias, shape=shape or flattened_shape(item, known))
    words = "+".join(kind.kinds(item.factors))
    return made.adapter, Cost(item.target.name, words, made.rank, made.exact, made.error)


def _of_base(
    item: Adapter, base: BaseWeights | None, *, read: bool
) -> tuple[tuple[int, ...] | None, torch.Tensor | None, torch.Tensor | None]:
    """The shape of the layer's weight; the weight (one without values unless `read`) and the bias only where the kind's
    delta depends on them.
    """
    if base is None:
        return None, None, None
    weight, needed = base.weight_of(item.target), kind_of(item.kind).needs_base(item.factors)
    if weight is None:
        if not needed:
            return None, None, None
        raise NotRepresentable(
            f"the base model holds no weight for {item.target.component}:{base.missing(item.target)}",
            path=base.name,
            hint="give the whole base model, or the component that the adapter changes",
        )
    require_shape(item, weight.shape, base.name)
    if not needed:
        return weight.shape, None, None
    bias = base.bias_of(item.target) if item.kind == "ia3" else None
    return weight.shape, weight.load() if read else _empty(weight.shape), None if bias is None else bias.load()


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.empty(shape, device="meta")


def flattened_shape(item: Adapter, known: tuple[Architecture, ...]) -> tuple[int, ...] | None:
    """The weight's shape with the kernel that factors hold flattened into the inputs, where the tables agree on it."""
    told = kind_of(item.kind).weight_shape(item.factors)
    if told is None or len(told) != 2 or None in told:
        return None
    rows, columns = (extent or 0 for extent in told)
    kernels = {
        table[path][2:]
        for architecture in known
        for variant in architecture.variants
        for table in (shapes(variant.shapes).get(item.target.component, {}),)
        for path in item.target.paths
        if path in table
    }
    if len(kernels) != 1:
        return None
    kernel = kernels.pop()
    return (rows, columns // prod(kernel), *kernel) if columns % prod(kernel) == 0 else None


def _named(item: Adapter, problem: NotRepresentable) -> NotRepresentable:
    """The refusal with the layer in front and the file behind."""
    name = item.target.name
    message = problem.message if problem.message.startswith((name, "the base model")) else f"{name}: {problem.message}"
    return NotRepresentable(
        message,
        path=problem.path or (item.origin.file if item.origin else None),
        key=problem.key or (item.origin.stem if item.origin else None),
        hint=problem.hint,
        **problem.evidence,
    )


def require_options(to: str, to_kind: str | None, *, rank: int | None, error: float | None, base: object) -> None:
    """Raise UsageError for options that mean nothing without --to-kind, or not beside one another."""
    if to_kind is None:
        given = [name for name, value in (("rank", rank), ("error", error), ("base", base)) if value is not None]
        if given:
            raise UsageError(f"--{given[0]} is for --to-kind lora", hint="add --to-kind lora")
        return
    if to_kind not in KINDS:
        raise UsageError(f"adapters cannot be converted to the kind {to_kind!r}", hint=f"one of {', '.join(KINDS)}")
    if to == "original":
        raise UsageError("--to original gives back the kind that there was", hint="name a format, or drop --to-kind")
