"""The Kind protocol and the registry: which factors exist and how they make a delta. One file each, one line here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Protocol

from loratools.adapters.boft import BOFT_KIND
from loratools.adapters.factors import NO_SETTINGS, Factors, Role, Settings
from loratools.adapters.full import FULL
from loratools.adapters.glora import GLORA
from loratools.adapters.ia3 import IA3_KIND
from loratools.adapters.loha import LOHA
from loratools.adapters.lokr import LOKR
from loratools.adapters.lora import LORA
from loratools.adapters.norm import NORM
from loratools.adapters.oft import OFT_KIND
from loratools.adapters.settings import require_known_scale
from loratools.errors import ArchitectureMismatch, UnsupportedFile, nearest
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

    from loratools.adapters.adapter import Adapter

__all__ = [
    "KINDS",
    "Factors",
    "Kind",
    "Role",
    "bias_delta_of",
    "constraint_of",
    "delta_of",
    "kind_of",
    "require_shape",
    "strength_of",
]


class Kind(Protocol):
    """What every kind offers. Layouts work on lazy tensors only; a layout or an arithmetic that a kind cannot follow
    raises NotRepresentable; torch is imported by `delta` and `bias_delta` alone.
    """

    @property
    def name(self) -> str:
        """The word that it goes by."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """Every role that a factor of it may have."""

    @property
    def product(self) -> tuple[str, ...]:
        """The roles in each of which the delta is linear, the one to fold a factor into first."""

    @property
    def biases(self) -> tuple[str, ...]:
        """The roles that scale alone multiplies."""

    @property
    def constrained(self) -> bool:
        """Whether alpha is a constraint, not the numerator of a scale."""

    def identify(self, present: Collection[str]) -> bool:
        """Whether factors of these roles could be of this kind."""
        ...

    def kinds(self, factors: Factors) -> tuple[str, ...]:
        """The words that a report uses: the name, and "dora"."""
        ...

    def needs_base(self, factors: Factors) -> bool:
        """Whether the delta depends on the base weight."""
        ...

    def rank(self, factors: Factors) -> int | None:
        """What alpha is divided by, or None."""
        ...

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(out, in, kernel…) of the weight, None where the factors do not tell; a kernel may be flattened into in."""
        ...

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter, with what was expected and found, where the factors do not make an adapter."""
        ...

    def delta(
        self,
        factors: Factors,
        scale: Scale,
        base: torch.Tensor | None = None,
        *,
        dtype: str = "float32",
        constraint: Fraction | None = None,
        settings: Settings = NO_SETTINGS,
    ) -> torch.Tensor:
        """The change of the weight at the user's scale 1, in the base's shape where it is given, in torch's `dtype`."""
        ...

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """The change of the layer's bias [out] (whose value is `base`), or None."""
        ...

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """The factors of each of the parts that the weight stacks, `sizes` rows each, exactly."""
        ...

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """The factors of the stack of parts (None is no change), exactly, all being of one scale."""
        ...

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The factors of the weight with the two halves of its rows exchanged."""
        ...

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """The factors of the transposed weight."""
        ...


KINDS: tuple[Kind, ...] = (BOFT_KIND, FULL, GLORA, IA3_KIND, LOHA, LOKR, LORA, NORM, OFT_KIND)

_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(name: str) -> Kind:
    """The kind of that name; raises UnsupportedFile for one that is not listed."""
    if name not in _BY_NAME:
        raise UnsupportedFile(f"unknown adapter kind {name!r}", hint=nearest(name, _BY_NAME))
    return _BY_NAME[name]


def constraint_of(adapter: Adapter) -> Fraction | None:
    """The constraint that a kind's alpha is (OFT, BOFT), None where it has none; 0 is none."""
    return (adapter.alpha.value or None) if kind_of(adapter.kind).constrained else None


def delta_of(adapter: Adapter, base: torch.Tensor | None = None, *, dtype: str = "float32") -> torch.Tensor:
    """The change that an adapter makes to its weight, at the user's scale 1."""
    return kind_of(adapter.kind).delta(
        adapter.factors,
        strength_of(adapter),
        base,
        dtype=dtype,
        constraint=constraint_of(adapter),
        settings=adapter.settings,
    )


def bias_delta_of(adapter: Adapter, base: torch.Tensor | None = None, *, dtype: str = "float32") -> torch.Tensor | None:
    """The change that an adapter makes to its layer's bias (whose value is `base`), or None."""
    return kind_of(adapter.kind).bias_delta(adapter.factors, strength_of(adapter), base, dtype=dtype)


def require_shape(item: Adapter, shape: Sequence[int], name: str) -> None:
    """Raise ArchitectureMismatch where the factors are for a weight of another shape."""
    told = kind_of(item.kind).weight_shape(item.factors) or ()
    rows = told[0] if told else None
    fits = rows in (None, shape[0])
    if fits and None not in told and len(told) > 1:
        fits = prod(extent or 1 for extent in told) == prod(shape)
    if not fits:
        raise ArchitectureMismatch(
            f"{item.target.name} is an adapter of a weight {list(told)}, the base model's is {list(shape)}",
            path=name,
            key=item.origin.stem if item.origin else None,
            hint="give the base model that the adapter was trained on",
            expected=list(told),
            found=list(shape),
        )


def strength_of(adapter: Adapter) -> Scale:
    """The scale for arithmetic; raises NotRepresentable where only a configuration that is not there states it."""
    require_known_scale(adapter.factors, adapter.alpha, adapter.settings)
    return adapter.scale
