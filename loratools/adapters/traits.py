"""What several kinds answer alike: those named by their roles, those that a magnitude may join, those over the base."""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

from collections.abc import Collection

from loratools.adapters import dora
from loratools.adapters.factors import Factors, Role, could_be


class Named:
    """A kind that is known by its roles and called by its name."""

    name: str
    roles: tuple[Role, ...]

    def identify(self, present: Collection[str]) -> bool:
        """Whether these roles could be this kind's; kinds with the same roles are told apart by their suffixes."""
        return could_be(self.roles, present)

    def kinds(self, factors: Factors) -> tuple[str, ...]:
        """The kind's own name."""
        return (self.name,)


class Additive(Named):
    """A kind whose delta is a product of its factors, with DoRA's magnitude beside them or without."""

    biases: tuple[str, ...] = ()
    constrained = False

    def kinds(self, factors: Factors) -> tuple[str, ...]:
        """The kind's own name, and dora with a magnitude."""
        return dora.kinds(self.name, factors)

    def needs_base(self, factors: Factors) -> bool:
        """Only with a magnitude."""
        return dora.is_dora(factors)


class OverBase(Named):
    """A kind whose delta is a function of the base weight, which it multiplies or rotates."""

    product: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    constrained = False

    def needs_base(self, factors: Factors) -> bool:
        """Always."""
        return True

    def rank(self, factors: Factors) -> int | None:
        """None: nothing to divide an alpha by."""
        return None
