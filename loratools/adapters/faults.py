"""Whose fault it is that a sum holds NaN or infinity: the base model's, an adapter's, or that of the dtype."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loratools.adapters.change import Change
from loratools.errors import NonFinite
from loratools.tensors.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

_ALLOW = "--allow-nonfinite goes on with them"


class Faults:
    """Judges the blocks of one tensor named `name`, written as `dtype`; inputs may be NaN where that is `allowed`."""

    def __init__(self, name: str, dtype: str, changes: Sequence[Change], *, allowed: bool) -> None:
        self._name, self._dtype, self._changes, self._allowed = name, dtype, changes, allowed
        self._lock = threading.Lock()
        self._found: tuple[Change | str | None] | None = None

    def judge(self, weight: torch.Tensor, total: torch.Tensor, made: torch.Tensor) -> int:
        """How many elements of `made` are not finite because an input's are not, if that is allowed.

        `weight` is the base's, `total` the sum before the cast. Raises NonFinite: for an overflow always, for what was
        given unless it is allowed. Where only a square overflowed, nothing is wrong.
        """
        import torch

        wild = ~_finite(made)
        sound = torch.isfinite(weight)
        ours = wild & sound
        if bool((ours & torch.isfinite(total)).any()) or (bool(ours.any()) and self._blamed() is None):
            wide = DTYPES[self._dtype].bits > 16 or self._dtype == "BF16"
            hint = "a smaller scale" if wide else "--dtype float32 or bfloat16, or a smaller scale"
            raise NonFinite(f"{self._name} overflows in {self._dtype}", key=self._name, hint=hint)
        if self._allowed:
            return int(wild.sum())
        blamed = self._blamed() if bool(ours.any()) else None
        if isinstance(blamed, Change):
            origin = blamed.adapter.origin
            raise NonFinite(
                f"{blamed.adapter.target.name} holds NaN or infinity",
                path=origin.file if origin else None,
                key=origin.stem if origin else None,
                hint=_ALLOW,
            )
        if blamed is not None or not bool(sound.all()):
            raise NonFinite(f"{self._name} of the base model holds NaN or infinity", key=self._name, hint=_ALLOW)
        return 0

    def _blamed(self) -> Change | str | None:
        """The first change with a factor that is not finite, "base" where one depends on such a weight, or None."""
        with self._lock:
            if self._found is None:
                self._found = (self._first(),)
            return self._found[0]

    def _first(self) -> Change | str | None:
        for change in self._changes:
            if not all(bool(_finite(item.load()).all()) for item in change.adapter.factors.values()):
                return change
            base = change.base()
            if base is not None and not bool(_finite(base).all()):
                return "base"
        return None


def _finite(values: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.isfinite(values.float() if values.element_size() < 4 else values)
