"""How far two adapters' deltas are apart, from the factors: float64, and never a large float32 product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import finite, named
from loratools.adapters.dora import MAGNITUDES
from loratools.adapters.factors import load, needs_base
from loratools.adapters.kind import bias_delta_of, constraint_of, delta_of, kind_of, strength_of
from loratools.adapters.lora import LORA
from loratools.adapters.residual import RESIDUAL
from loratools.adapters.settings import beyond_scale
from loratools.errors import ArchitectureMismatch, ResourceError

if TYPE_CHECKING:
    import torch

DENSE_LIMIT = 2**28
"""The most elements of a delta that is formed whole (2 GiB in float64)."""

_MAGNITUDES = tuple(role.name for role in MAGNITUDES)


class Difference(NamedTuple):
    """Frobenius norms of both deltas, ‖a − b‖ (`distance`), relative_error, and the cosine between them.

    relative_error is ‖a − b‖ / ‖a‖ of the weight, or that of the biases or magnitudes where it is larger: 0 where both
    sides are zero, infinite where only `a` is. The cosine of two zeros is 1, of one zero 0.
    """

    norm_a: float
    norm_b: float
    relative_error: float
    cosine: float
    distance: float = 0.0


def difference(a: Sequence[Adapter], b: Sequence[Adapter], base: torch.Tensor | None = None) -> Difference:
    """Compare the sum of the adapters `a` with that of `b`; all change one and the same weight, `base`.

    Pairs of low rank are compared through the QR cores of the concatenated factors, everything else as dense float64
    deltas (ResourceError beyond DENSE_LIMIT). Without `base`, the magnitudes of DoRA are compared as vectors beside the
    deltas, and kinds that multiply the base factor by factor (NotRepresentable where the factors have no counterpart).
    Raises NonFinite for a factor that is not finite. Set torch to one thread before: many small products.
    """
    everything = (*a, *b)
    if base is None and any(kind_of(item.kind).needs_base(_plain(item).factors) for item in everything):
        weight = _by_factor(a, b)
    elif all(_is_pair(item) for item in everything) and (base is None or not _with_magnitude(everything)):
        weight = _through_cores(a, b)
    else:
        weight = _dense(a, b, base)
    beside = _vectors(a, b, magnitudes=base is None)
    if not beside > weight.relative_error:
        return weight
    return Difference(weight.norm_a, weight.norm_b, beside, weight.cosine, weight.distance)


def _is_pair(adapter: Adapter) -> bool:
    return adapter.kind == LORA.name and RESIDUAL not in adapter.factors


def _with_magnitude(adapters: Sequence[Adapter]) -> bool:
    return any(role in item.factors for item in adapters for role in _MAGNITUDES)


def _plain(adapter: Adapter) -> Adapter:
    """The adapter without its magnitudes."""
    factors = {role: tensor for role, tensor in adapter.factors.items() if role not in _MAGNITUDES}
    return replace(adapter, factors=factors)


def _judged(norm_a: float, norm_b: float, distance: float, product: float) -> Difference:
    cosine = product / (norm_a * norm_b) if norm_a and norm_b else float(norm_a == norm_b)
    return Difference(norm_a, norm_b, relative(distance, norm_a), min(1.0, max(-1.0, cosine)), distance)


def relative(distance: float, norm: float) -> float:
    """distance / norm; 0 / 0 is 0, anything else over 0 infinite."""
    return distance / norm if norm else (math.inf if distance else 0.0)


def _of_pair(left: torch.Tensor, right: torch.Tensor) -> Difference:
    """The difference of two float64 tensors of one shape."""
    import torch

    norm = torch.linalg.vector_norm
    product = float(torch.dot(left.reshape(-1), right.reshape(-1)))
    return _judged(float(norm(left)), float(norm(right)), float(norm(left - right)), product)


def _through_cores(a: Sequence[Adapter], b: Sequence[Adapter]) -> Difference:
    """U = [U_a U_b] = Q R and V = [V_a; V_b]ᵀ = P S: each delta is Q (R_x S_xᵀ) Pᵀ, so its core tells all norms."""
    import torch

    lefts: list[torch.Tensor] = []
    rights: list[torch.Tensor] = []
    for item in (*a, *b):
        with named(item):
            left, right = LORA.low_rank(_plain(item).factors, "float64")
        lefts.append(finite(left * float(strength_of(item)), item))
        rights.append(finite(right, item))
    if not lefts:
        return _judged(0.0, 0.0, 0.0, 0.0)
    if len({(left.shape[0], right.shape[1]) for left, right in zip(lefts, rights, strict=True)}) > 1:
        raise ArchitectureMismatch(
            "deltas of different shapes cannot be compared",
            expected=[lefts[0].shape[0], rights[0].shape[1]],
            found=[[left.shape[0], right.shape[1]] for left, right in zip(lefts, rights, strict=True)],
        )
    _, upper = torch.linalg.qr(torch.cat(lefts, 1), mode="r")
    _, lower = torch.linalg.qr(torch.cat(rights, 0).T.contiguous(), mode="r")
    cut = sum(left.shape[1] for left in lefts[: len(a)])
    return _of_pair(upper[:, :cut] @ lower[:, :cut].T, upper[:, cut:] @ lower[:, cut:].T)


def _dense(a: Sequence[Adapter], b: Sequence[Adapter], base: torch.Tensor | None) -> Difference:
    deltas = [_sum(side, base) for side in (a, b)]
    there = [delta for delta in deltas if delta is not None]
    if not there:
        return _judged(0.0, 0.0, 0.0, 0.0)
    left, right = (there[0].new_zeros(there[0].numel()) if delta is None else delta.reshape(-1) for delta in deltas)
    if left.numel() != right.numel():
        raise ArchitectureMismatch(
            "deltas of different shapes cannot be compared",
            expected=list(there[0].shape),
            found=list(there[-1].shape),
        )
    return _of_pair(left, right)


def _sum(side: Sequence[Adapter], base: torch.Tensor | None) -> torch.Tensor | None:
    """The dense float64 sum of the deltas, or None where none of them changes the weight."""
    total: torch.Tensor | None = None
    for item in side:
        kind, plain = kind_of(item.kind), item if base is not None else _plain(item)
        if base is None and kind.needs_base(plain.factors):
            continue
        shape = kind.weight_shape(plain.factors) or ()
        elements = math.prod(extent or 1 for extent in shape) if base is None else base.numel()
        if elements > DENSE_LIMIT:
            raise ResourceError(
                f"the delta of {item.target.name} has {elements} elements, too many to form whole",
                path=item.origin.file if item.origin else None,
                key=item.origin.stem if item.origin else None,
                limit=DENSE_LIMIT,
            )
        with named(item):
            delta = finite(delta_of(plain, base, dtype="float64"), item)
        total = delta if total is None else total + delta.reshape(total.shape)
    return total


def _by_factor(a: Sequence[Adapter], b: Sequence[Adapter]) -> Difference:
    """Kinds that multiply the base, without the base: equal factors make equal deltas, so the factors are compared."""
    import torch

    sides = [{role: tensor for item in side for role, tensor in item.factors.items()} for side in (a, b)]
    kinds = {item.kind for item in (*a, *b)}
    same_shapes = {r: t.numel for r, t in sides[0].items()} == {r: t.numel for r, t in sides[1].items()}
    if max(len(a), len(b)) > 1 or len(kinds) > 1 or not same_shapes or not _same_settings(a, b):
        if not a or not b:
            return _judged(1.0 if a else 0.0, 1.0 if b else 0.0, 1.0, 0.0)
        raise needs_base(" and ".join(sorted(kinds)))
    worst = _judged(0.0, 0.0, 0.0, 0.0)
    for role in sides[0]:
        left, right = (
            finite(load(side[role], "float64").reshape(-1), item[0]) for side, item in zip(sides, (a, b), strict=True)
        )
        found = _of_pair(left, right)
        worst = max(worst, found, key=lambda item: (item.relative_error, item.norm_a))
    if not a[0].scale.equals(b[0].scale) or constraint_of(a[0]) != constraint_of(b[0]):
        ratio = torch.tensor([float(a[0].scale), float(constraint_of(a[0]) or 0)], dtype=torch.float64)
        other = torch.tensor([float(b[0].scale), float(constraint_of(b[0]) or 0)], dtype=torch.float64)
        worst = max(worst, _of_pair(ratio, other), key=lambda item: item.relative_error)
    return worst


def _same_settings(a: Sequence[Adapter], b: Sequence[Adapter]) -> bool:
    return all(beyond_scale(item.settings) == beyond_scale(other.settings) for item in a for other in b)


def _vectors(a: Sequence[Adapter], b: Sequence[Adapter], *, magnitudes: bool) -> float:
    """The largest relative error among the biases and, where the base is not known, the magnitudes."""
    pairs: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(_bias(a), _bias(b))]
    if magnitudes:
        pairs += [(_magnitude(a, role), _magnitude(b, role)) for role in _MAGNITUDES]
    return max(_vector_error(left, right) for left, right in pairs)


def _vector_error(left: torch.Tensor | None, right: torch.Tensor | None) -> float:
    if left is None or right is None:
        one = left if left is not None else right
        if one is None or not bool(one.any()):
            return 0.0
        return math.inf if left is None else 1.0
    if left.numel() != right.numel():
        return math.inf
    return _of_pair(left, right).relative_error


def _bias(side: Sequence[Adapter]) -> torch.Tensor | None:
    total: torch.Tensor | None = None
    for item in side:
        bias = bias_delta_of(item, dtype="float64")
        if bias is not None:
            total = finite(bias, item) if total is None else total + finite(bias, item)
    return total


def _magnitude(side: Sequence[Adapter], role: str) -> torch.Tensor | None:
    found = [item for item in side if role in item.factors]
    if len(found) > 1:
        raise needs_base("dora")
    return finite(load(found[0].factors[role], "float64").reshape(-1), found[0]) if found else None
