"""Plain values without IO: what an adapter changes (Target), how strongly (Alpha), how its file spelt it (Dialect)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

Axis = Literal["rows", "columns"]
Container = Literal["safetensors", "gguf"]
AlphaSource = Literal["tensor", "config", "metadata", "absent", "tensor (not read)"]


class Target(NamedTuple):
    """The layer, or the layers that one weight fuses, that an adapter changes.

    `paths` are canonical and in the order in which their parts are stacked along `axis`; `ratio` are the relative
    sizes of the parts, so that no hidden size is stated anywhere: Flux' linear1 is (q, k, v, mlp) at (1, 1, 1, 4).
    """

    component: str
    paths: tuple[str, ...]
    ratio: tuple[int, ...] = (1,)
    axis: Axis = "rows"

    @property
    def name(self) -> str:
        """How messages name it: `unet:mid_block.attentions.0.proj_in`, parts joined by `+`."""
        return f"{self.component}:{'+'.join(self.paths)}"

    def sizes(self, total: int) -> tuple[int, ...] | None:
        """`total` shared out by `ratio`, or None where it cannot be shared in whole numbers."""
        unit, rest = divmod(total, sum(self.ratio))
        return None if rest else tuple(unit * share for share in self.ratio)


class Scale(NamedTuple):
    """The exact number numerator / √root that a product of factors is multiplied by (root > 1 only for rsLoRA)."""

    numerator: Fraction
    root: int = 1

    @classmethod
    def of(cls, numerator: Fraction, root: int = 1) -> Scale:
        """The same number in one form: whole roots are taken."""
        whole = math.isqrt(root)
        return cls(numerator / whole, 1) if whole * whole == root else cls(numerator, root)

    def __float__(self) -> float:
        """The nearest double."""
        return float(self.numerator) / math.sqrt(self.root)

    def equals(self, other: Scale) -> bool:
        """Exact equality of the two numbers."""
        if self == other:
            return True
        same_sign = (self.numerator > 0) == (other.numerator > 0) and (self.numerator < 0) == (other.numerator < 0)
        return same_sign and self.numerator**2 * other.root == other.numerator**2 * self.root


class Alpha(NamedTuple):
    """The numerator of an adapter's scale as its file states it; `value` None means absent, which is scale 1, not 0.

    `stored` is the dtype and shape of the tensor that held it; `rank_stabilized` makes the scale alpha / √rank.
    """

    value: Fraction | None = None
    source: AlphaSource = "absent"
    rank_stabilized: bool = False
    stored: tuple[str, tuple[int, ...]] | None = None

    def scale(self, rank: int | None) -> Scale:
        """alpha / rank (or alpha / √rank); 1 where alpha or a rank is absent."""
        if self.value is None or not rank:
            return Scale(Fraction(1))
        return _quotient(self.value, rank, rooted=self.rank_stabilized)


@lru_cache(maxsize=1024)
def _quotient(value: Fraction, rank: int, *, rooted: bool) -> Scale:
    """value / rank, or value / √rank: nearly all layers of a file have the same."""
    return Scale.of(value, rank) if rooted else Scale(value / rank)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a file spells the keys of one component: prefix, naming, encoding, and one suffix for each role."""

    prefix: str
    naming: str
    flat: bool
    suffixes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a whole file spelt things. `alpha` says where alphas are written; a format is a named dialect for writing."""

    format: str
    spellings: Mapping[str, Spelling]
    alpha: Literal["tensor", "metadata", "config", "none"] = "none"
    alpha_dtype: str | None = None
