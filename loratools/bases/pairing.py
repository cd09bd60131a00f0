"""Two base models side by side: every weight and bias that both hold, by component and canonical path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from loratools.adapters.rounding import SCALED
from loratools.architectures.architecture import Architecture
from loratools.architectures.llm_namings import LanguageNaming
from loratools.bases.companions import companion
from loratools.bases.native import Native
from loratools.bases.weights import Base, BaseWeights
from loratools.errors import InternalError
from loratools.model import Target
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import Bytes

if TYPE_CHECKING:
    import torch

Sort = Literal["layer", "norm", "bias", "embedding", "parameter", "other"]

GENERIC = "model"
"""The component of a model without a table."""

EMBEDDINGS = (
    "embed_in", "embed_positions", "embed_tokens", "position_embedding", "position_embeddings",
    "relative_attention_bias", "shared", "token_embedding", "token_type_embeddings", "word_embeddings", "wpe", "wte",
)  # fmt: skip
"""The last words of paths whose matrices are tables that rows are looked up in, not layers."""

_BLOCK = 1 << 20  # elements that are read at a time


@dataclass(frozen=True, slots=True)
class Twin:
    """One tensor of both models, in canonical layout and the base's shape: a weight or, with `is_bias`, a bias.

    `sort` "layer" is a linear layer or a convolution, "parameter" and "other" are what no adapter holds; `stored` are
    the dtypes in both files, as `adapters.rounding` calls them; `key` is the name that the tuned model's file has for
    it.
    """

    target: Target
    sort: Sort
    base: LazyTensor
    tuned: LazyTensor
    stored: tuple[str, str]
    key: str
    is_bias: bool = False

    @property
    def name(self) -> str:
        """How reports name it."""
        return f"{self.target.name}.bias" if self.is_bias else self.target.name

    @property
    def nbytes(self) -> int:
        """The bytes of both versions."""
        return self.base.nbytes + self.tuned.nbytes

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, elements of a row)."""
        return self.base.shape[0], prod(self.base.shape[1:])

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """(rows, the base's, the tuned model's) as float32 [rows, elements of a row], a few rows at a time."""
        rows, columns = self.matrix
        step = max(1, _BLOCK // max(1, columns))
        ours, theirs = _sliceable(self.base), _sliceable(self.tuned)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            pair = [side.rows(start, stop).load().float().reshape(stop - start, -1) for side in (ours, theirs)]
            yield slice(start, stop), pair[0], pair[1]


@dataclass(frozen=True)
class Pair:
    """What two models have in common, and what not.

    `coverage` is the share of a component's weights that both hold, for components of which both hold any; `misshapen`
    are tensors of different shapes, `unpaired` those of such components that one side lacks, `one_sided` whole
    components that one side lacks; `unplaced` are tensors of other names on both sides (name → both); `beyond` are
    layers that checkpoints have and the pipeline's model has not, so that no adapter can name them. `turned` says that
    matrices are stored [in, out]. `tied` are heads that both models' configurations read from an embedding: head →
    embedding, by path; `alike` those whose values are an embedding's in both; `names` is a language model's naming.
    """

    table: Architecture | None
    candidates: tuple[str, ...]
    base: BaseWeights
    tuned: BaseWeights
    twins: tuple[Twin, ...]
    coverage: Mapping[str, float]
    misshapen: tuple[str, ...]
    unpaired: tuple[str, ...]
    one_sided: tuple[str, ...]
    unplaced: Mapping[str, tuple[LazyTensor, LazyTensor]]
    beyond: tuple[str, ...] = ()
    turned: bool = False
    tied: Mapping[str, str] = field(default_factory=dict)
    alike: Mapping[str, str] = field(default_factory=dict)
    names: LanguageNaming | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """The components of which both models hold weights."""
        return tuple(self.coverage)


def pair(
    base: Base,
    tuned: Base,
    table: Architecture | None,
    candidates: tuple[str, ...],
    target_of: Callable[[str, str], Target | None],
) -> Pair:
    """Pair two models as one architecture reads them; `target_of` says which layers the output will keep fused, or
    None for a path that it cannot name.
    """
    ours, theirs = base.of(table), tuned.of(table)
    if table is None:
        theirs = _renamed(theirs, _named(ours.weights))
    mine, yours = _named(ours.weights), _named(theirs.weights)
    beyond: tuple[str, ...] = ()
    if table is not None:  # a checkpoint may hold layers that no canonical model has: SD2's last text layer
        beyond = tuple(f"{place[0]}:{place[1]}" for place in mine if not _is_canonical(table, *place))
        mine, yours = (
            {place: held for place, held in side.items() if _is_canonical(table, *place)} for side in (mine, yours)
        )
    coverage = _coverage(mine, yours)
    twins: list[Twin] = []
    misshapen: list[str] = []
    for target, is_bias in _targets(mine, yours, coverage, target_of):
        found = _twin(ours, theirs, table, target, is_bias=is_bias)
        if found is None:
            continue
        if found.base.shape != found.tuned.shape:
            misshapen.append(f"{found.name}: {list(found.base.shape)} and {list(found.tuned.shape)}")
        else:
            twins.append(found)
    both = set(mine) & set(yours)
    lone = {place: side for side, held in (("base", mine), ("tuned", yours)) for place in held if place not in both}
    return Pair(
        table,
        candidates,
        ours,
        theirs,
        tuple(twins),
        coverage,
        tuple(misshapen),
        tuple(f"{c}:{path}: only in {side}" for (c, path), side in lone.items() if c in coverage),
        tuple(dict.fromkeys(f"{c}: only in {side}" for (c, _), side in lone.items() if c not in coverage)),
        _unplaced(base, ours, tuned, theirs),
        beyond,
        table is None and any(item.placement.layout == "transpose" and item.part is None for item in mine.values()),
    )


def _named(held: Mapping[tuple[str, str], Native]) -> dict[tuple[str, str], Native]:
    """The same with the generic component called by its name."""
    return {(component or GENERIC, path): native for (component, path), native in held.items()}


def _is_canonical(table: Architecture, component: str, path: str) -> bool:
    known = table.by_name.get(component)
    return known is not None and known.namings[0].at_canonical(path) is not None


def _coverage(mine: Iterable[tuple[str, str]], yours: Iterable[tuple[str, str]]) -> dict[str, float]:
    ours, theirs = set(mine), set(yours)
    found = {}
    for component in dict.fromkeys(component for component, _ in mine):
        left = {path for name, path in ours if name == component}
        right = {path for name, path in theirs if name == component}
        if right:
            found[component] = len(left & right) / len(left | right)
    return found


def _targets(
    mine: Mapping[tuple[str, str], Native],
    yours: Mapping[tuple[str, str], Native],
    coverage: Mapping[str, float],
    target_of: Callable[[str, str], Target | None],
) -> Iterator[tuple[Target, bool]]:
    """Every target of which both models hold all parts, first its weight, then its bias; else its parts alone."""
    seen: set[tuple[str, str]] = set()
    for component, path in mine:
        if (component, path) in seen or (component, path) not in yours or component not in coverage:
            continue
        target = target_of(component, path) or Target(component, (path,))
        places = [(component, part) for part in target.paths]
        if not all(place in mine and place in yours for place in places):
            target, places = Target(component, (path,)), [(component, path)]
        seen.update(places)
        yield target, False
        yield target, True


def _twin(
    ours: BaseWeights, theirs: BaseWeights, table: Architecture | None, target: Target, *, is_bias: bool
) -> Twin | None:
    """Both versions of a target's weight or bias; None where one side has no such bias."""
    if is_bias:
        mine, yours = ours.bias_of(target), theirs.bias_of(target)
    else:
        mine, yours = ours.weight_of(target), theirs.weight_of(target)
    if mine is None or yours is None:
        return None
    weight = ours.weight_of(target)
    sort = _sort(target, weight.shape if weight else (), is_bias=is_bias)
    if sort == "layer" and table is not None and _is_bare(table, target):
        sort = "parameter"
    if mine.shape != yours.shape and mine.shape[0] == yours.shape[0] and mine.numel == yours.numel:
        yours = yours.reshape(*mine.shape)  # a 1×1 convolution that one file holds as a matrix
    natives = [_native(side, target, is_bias=is_bias) for side in (ours, theirs)]
    stored = tuple(SCALED + native.tensor.dtype if native.unit else native.tensor.dtype for native in natives)
    return Twin(target, sort, mine, yours, (stored[0], stored[1]), natives[1].key, is_bias)


def _sort(target: Target, shape: tuple[int, ...], *, is_bias: bool) -> Sort:
    if len(shape) < 2:
        return "norm"
    if is_bias:
        return "bias"
    if len(shape) == 2 and target.paths[0].rpartition(".")[2] in EMBEDDINGS:
        return "embedding"
    depthwise = len(shape) > 2 and shape[1] == 1 < shape[0] and prod(shape[2:]) > 1
    return "other" if depthwise else "layer"


def _is_bare(table: Architecture, target: Target) -> bool:
    """Whether a weight is a parameter that no layer multiplies by: a table of scales and shifts, a learned position."""
    placement = table.by_name[target.component].namings[0].at_canonical(target.paths[0])
    return placement is not None and placement.bias_key is None


def _native(held: BaseWeights, target: Target, *, is_bias: bool) -> Native:
    """The tensor of the file that holds the first path of a target."""
    places = held.biases if is_bias else held.weights
    found = places.get((target.component, target.paths[0])) or places.get(("", target.paths[0]))
    if found is None:
        raise InternalError(f"{target.name} was found, and is not there")
    return found


def _renamed(held: BaseWeights, wanted: Mapping[tuple[str, str], Native]) -> BaseWeights:
    """A model without a table by the names of another, where they differ by a level before all of them (`model.`)."""
    names = [path for _, path in wanted]
    root = names[0].split(".")[0] + "." if names else ""

    def shared(spell: Callable[[str], str]) -> int:
        return sum(("", spell(path)) in known for _, path in held.weights)

    known = {("", path) for path in names}
    ways: tuple[Callable[[str], str], ...] = (
        lambda path: path,
        lambda path: root + path,
        lambda path: path.partition(".")[2] or path,
    )
    best = max(ways, key=shared)
    if best is ways[0]:
        return held
    return replace(
        held,
        weights={(component, best(path)): native for (component, path), native in held.weights.items()},
        biases={(component, best(path)): native for (component, path), native in held.biases.items()},
    )


def _unplaced(
    base: Base, ours: BaseWeights, tuned: Base, theirs: BaseWeights
) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Tensors of one name and shape on both sides that are neither placed weights nor companions."""
    left, right = (_rest(model, held) for model, held in ((base, ours), (tuned, theirs)))
    return {
        key: (tensor, right[key]) for key, tensor in left.items() if key in right and right[key].shape == tensor.shape
    }


def _rest(model: Base, held: BaseWeights) -> dict[str, LazyTensor]:
    placed = {(id(native.source), native.key) for side in (held.weights, held.biases) for native in side.values()}
    return {
        f"{component}:{key}" if component else key: source[key]
        for component, source in model.parts
        for key in source
        if (id(source), key) not in placed and companion(key) is None
    }


def _sliceable(tensor: LazyTensor) -> LazyTensor:
    """The tensor, in memory where its rows cannot be read alone (a transpose is made whole)."""
    if all(isinstance(segment, Bytes) for segment in tensor.segments):
        return tensor
    return LazyTensor.from_bytes(tensor.dtype, tensor.shape, tensor.tobytes())
