"""Adapter and AdapterSet: the one intermediate representation, canonical in path, row order and role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loratools.adapters.kind import kind_of
from loratools.adapters.settings import scale_under
from loratools.model import Alpha, Dialect, Scale, Target
from loratools.tensors.lazy import LazyTensor


class Origin(NamedTuple):
    """Where an adapter was read: the file, the stem its keys share, the key and shape of every role (and `alpha`)."""

    file: str
    stem: str
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One target with its kind, its factors by role and its alpha.

    Factors are in canonical row order (a native layout is undone on reading and done again on writing).
    `magnitude` is always [out] and `input_magnitude` [in], however the file shaped them. `settings` are what a PEFT
    configuration says about this module beyond rank and alpha, under PEFT's names (`adapters.settings` lists them).
    """

    target: Target
    kind: str
    factors: Mapping[str, LazyTensor]
    alpha: Alpha = Alpha()
    origin: Origin | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by, or None for kinds without one; a stated r where the factors show none."""
        found = kind_of(self.kind).rank(self.factors)
        return self.settings.get("r") if found is None else found

    @property
    def scale(self) -> Scale:
        """What the product of the factors is multiplied by, exactly."""
        return scale_under(self.alpha, self.rank, self.settings)

    @property
    def nbytes(self) -> int:
        """The bytes of all factors."""
        return sum(tensor.nbytes for tensor in self.factors.values())


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """A whole adapter file. `architectures` lists every id that fits, likeliest first; `extras` are recognised tensors
    that are no adapters, by component and key as found; `configs` are PEFT configurations by component.
    """

    architectures: tuple[str, ...]
    dialect: Dialect
    adapters: tuple[Adapter, ...]
    extras: Mapping[str, Mapping[str, LazyTensor]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
