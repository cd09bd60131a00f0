"""The weights of a base model by component and canonical path, however its files name, fuse, turn or shard them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from loratools.adapters.factors import transposed
from loratools.architectures.architecture import Architecture, shapes
from loratools.architectures.naming import Placement, skeleton
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.agreement import DENOISERS, Told, agreement
from loratools.bases.companions import companion
from loratools.bases.identify import identify
from loratools.bases.language import TURNED, verbatim
from loratools.bases.matching import Match, Part, matches
from loratools.bases.native import Native
from loratools.bases.quantised import check_quantised, dequantised, refuse_packed, unit_key
from loratools.errors import ArchitectureMismatch, UnsupportedFile, WrongRole
from loratools.model import Target
from loratools.tensors.lazy import LazyTensor, stack_rows
from loratools.tensors.source import LocalFile, TensorSource

Named = tuple[str | None, TensorSource]

_COMPONENTS = frozenset(component.name for known in ARCHITECTURES for component in known.components)


@dataclass(frozen=True)
class Base:
    """A base model that has been identified, not read; `candidates` are the architectures that fit all its parts."""

    name: str
    candidates: tuple[str, ...]
    parts: tuple[Named, ...]
    _known: dict[str, tuple[tuple[str, Native], ...]] = field(default_factory=dict, repr=False, compare=False)

    def of(self, table: Architecture | None) -> BaseWeights:
        """Its weights by the paths of an architecture; None is a model whose own names are its canonical ones."""
        weights: dict[tuple[str, str], Native] = {}
        biases: dict[tuple[str, str], Native] = {}
        for component, native in self.natives(table):
            held = biases if native.is_bias else weights
            for path in native.placement.paths:
                held.setdefault((component, path), native)  # of two variants of a component the first is meant
        known = tuple(item for item in ARCHITECTURES if item.id in self.candidates) if table else ()
        return BaseWeights(self.name, known, weights, biases, {} if table else self._wholes())

    def natives(self, table: Architecture | None) -> tuple[tuple[str, Native], ...]:
        """Every weight and every bias of all parts that the architecture places, with its component."""
        name = table.id if table else ""
        if name not in self._known:
            self._known[name] = tuple(self._natives(table))
        return self._known[name]

    def _natives(self, table: Architecture | None) -> Iterator[tuple[str, Native]]:
        for component, source in self.parts:
            if table is None:
                yield from (("", native) for native in verbatim(source, self._turned()))
                continue
            placed = _placed(component, source, table)
            for name, part in placed.items():
                for key, placement in part.keys.items():
                    leaf = key[len(part.prefix) :]
                    weight = part.prefix + placement.weight_key
                    held = placement.settled(source[weight].shape if weight in source else ())
                    if held and leaf in (placement.weight_key, placement.bias_key):
                        is_bias = leaf != placement.weight_key
                        yield (
                            name,
                            Native(source[key], key, held, source, is_bias, None if is_bias else unit_key(source, key)),
                        )

    def _wholes(self) -> dict[tuple[str, str], Native]:
        """The layers of a language model that are several projections, by their own names: some adapters have no other
        for them, as the shares of their rows do not tell.
        """
        return {
            (component, native.placement.native): replace(
                native, placement=Placement(native.placement.native, (native.placement.native,), (1,), "rows")
            )
            for component, native in self.natives(None)
            if len(native.placement.paths) > 1 and not native.is_bias
        }

    def _turned(self) -> frozenset[str]:
        """The last words of the layers that a language model stores as [in, out]."""
        return frozenset(word for name in self.candidates for word in TURNED.get(name, ()))


@dataclass(frozen=True)
class BaseWeights:
    """Lazy weights and biases in canonical layout: parts of a fused row cut out, halves and transposes undone."""

    name: str
    known: tuple[Architecture, ...]
    weights: Mapping[tuple[str, str], Native]
    biases: Mapping[tuple[str, str], Native]
    wholes: Mapping[tuple[str, str], Native] = field(default_factory=dict)

    def weight(self, component: str, path: str) -> LazyTensor | None:
        """The weight [out, in, kernel…] of a canonical path, or None where the files do not hold it."""
        native = self._at(self.weights, component, path)
        if native is None:
            return None
        tensor = dequantised(native.tensor, native.source[native.unit] if native.unit else None)
        if native.placement.layout == "transpose":
            tensor = transposed(tensor)
        return self._shaped(_rows(native, tensor, path), component, path)

    def bias(self, component: str, path: str) -> LazyTensor | None:
        """The bias [out] of a canonical path, or None."""
        native = self._at(self.biases, component, path)
        return None if native is None else _rows(native, native.tensor, path)

    def missing(self, target: Target) -> str | None:
        """The first path of a target whose weight the files do not hold, or None."""
        return next((path for path in target.paths if self._at(self.weights, target.component, path) is None), None)

    def weight_of(self, target: Target) -> LazyTensor | None:
        """The weights of all paths of a target stacked by rows, as an adapter of that target changes them."""
        return _stacked([self.weight(target.component, path) for path in target.paths])

    def bias_of(self, target: Target) -> LazyTensor | None:
        """The biases of all paths of a target one after another, or None where one of them has none."""
        return _stacked([self.bias(target.component, path) for path in target.paths])

    def files(self, components: Sequence[str]) -> tuple[LocalFile, ...]:
        """The files that hold weights of these components."""
        found = {
            file: None
            for (component, _), native in self.weights.items()
            if component in components
            for file in native.source.files
        }
        return tuple(found)

    def _at(self, held: Mapping[tuple[str, str], Native], component: str, path: str) -> Native | None:
        found = held.get((component, path))
        if found is None and not self.known:  # a model without a table is one component, whatever it is called
            found = held.get(("", path)) or held.get(("", path.partition(".")[2]))  # a model saved without its head
        if found is None and held is self.weights and self.wholes:
            found = self.wholes.get(("", path)) or self.wholes.get(("", path.partition(".")[2]))
        return found

    def _shaped(self, weight: LazyTensor, component: str, path: str) -> LazyTensor:
        """A 1×1 convolution as all tables that fit have it: some files hold it as a matrix, or the reverse."""
        numbers = {
            len(table[path])
            for known in self.known
            for variant in known.variants
            if path in (table := shapes(variant.shapes).get(component, {}))
        }
        dimensions = next(iter(numbers)) if len(numbers) == 1 else len(weight.shape)
        if dimensions == len(weight.shape) or prod(weight.shape[2:]) != 1 or dimensions < 2 or len(weight.shape) < 2:
            return weight
        return weight.reshape(*weight.shape[:2], *(1,) * (dimensions - 2))


def open_base(name: str, parts: Sequence[Named]) -> Base:
    """Identify the parts of a base model: (component where a folder names it, its tensors).

    Raises WrongRole for what holds no base model, UnsupportedFile for weights that are quantised in a way that is not
    read, ArchitectureMismatch where its parts fit no architecture together.
    """
    kept: list[Named] = []
    told: list[Told] = []
    for component, source in parts:
        found = identify({key: source[key].shape for key in source})
        if not _is_read(component, source):
            continue
        if component is not None and component not in _COMPONENTS and found is not None and not found.candidates:
            continue  # a safety checker or an image encoder: no adapter is for it, and it goes along as it is
        if found is not None and found.role == "base":
            kept.append((component, source))
            told.append((component, found.candidates))
    if not kept:
        for _, source in parts:
            refuse_packed(source)
        raise WrongRole("no base model, nor a component of one", path=name, hint="loratools inspect tells what it is")
    shared = agreement(told)
    if not shared.candidates and any(candidates for _, candidates in told):
        said = " and ".join(sorted({" or ".join(item) or "unknown" for _, item in told}))
        raise ArchitectureMismatch(f"the parts of the base model are of different architectures ({said})", path=name)
    return Base(name, shared.candidates, tuple(part for at, part in enumerate(kept) if at not in shared.carried))


def _is_read(component: str | None, source: TensorSource) -> bool:
    """Whether the numbers of a part can be read; an encoder whose numbers cannot goes along as it is, a denoiser's
    raise UnsupportedFile.
    """
    try:
        check_quantised(source)
    except UnsupportedFile:
        if component is None or component in DENOISERS:
            raise
        return False
    return True


def _placed(component: str | None, source: TensorSource, table: Architecture) -> Mapping[str, Part]:
    """The keys of one source by component, as `table` reads them."""
    sizes = {key: source[key].shape for key in source if companion(key) is None}
    match: Match | None = next((item for item in matches(sizes) if item.architecture.id == table.id), None)
    if match is None:
        return {}
    if component is None or component in match.parts or component not in table.by_name or len(match.parts) != 1:
        return match.parts
    # Encoders of one sort share their names: where sizes do not tell them apart, the folder does.
    (part,) = match.parts.values()
    naming = table.by_name[component].naming(part.naming)
    if naming is None:
        return match.parts
    keys = {key: naming.at_native(*skeleton(placement.native)) for key, placement in part.keys.items()}
    renamed = {key: placement for key, placement in keys.items() if placement is not None}
    return {component: replace(part, component=component, keys=renamed)}


def _rows(native: Native, tensor: LazyTensor, path: str) -> LazyTensor:
    """The rows of one path in canonical order."""
    if native.placement.layout == "swap_halves":
        tensor = tensor.swap_halves()
    if len(native.placement.paths) == 1:
        return tensor
    sizes = Target("", native.placement.paths, native.placement.ratio).sizes(tensor.shape[0])
    if sizes is None:
        raise ArchitectureMismatch(
            f"{tensor.shape[0]} rows cannot be shared out as {list(native.placement.ratio)}", key=native.key
        )
    at = native.placement.paths.index(path)
    return tensor.rows(sum(sizes[:at]), sum(sizes[: at + 1]))


def _stacked(parts: Sequence[LazyTensor | None]) -> LazyTensor | None:
    found = [part for part in parts if part is not None]
    return stack_rows(found) if len(found) == len(parts) else None
