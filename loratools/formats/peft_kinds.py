"""adapter_config.json for PEFT's kinds other than LoRA: what makes PEFT build the very factors that the file holds.

PEFT chooses the shapes of a LoKr itself, from the weight's extents, r and three switches: a file whose factors are of
other shapes cannot be said in a configuration at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.ia3 import IA3_KIND
from loratools.adapters.kind import kind_of
from loratools.adapters.settings import tuner_of
from loratools.errors import NotRepresentable
from loratools.formats import peft_tuners
from loratools.formats.alpha_tensor import plain
from loratools.formats.configs import Config, as_number

KINDS = ("loha", "lokr", "ia3", "adalora", "oft")


def config(
    members: Sequence[Adapter], native: Callable[[Adapter], str], carried: Mapping[str, Any], source: Config
) -> dict[str, Any]:
    """The configuration of one component whose adapters are all of one of KINDS; `native` is a module's own path.

    `source` is the configuration that was read, empty where there was none; `carried` is what of it stays true.

    Raises NotRepresentable where no configuration makes PEFT compute these deltas.
    """
    kind = tuner_of(members[0].kind, members[0].factors)
    frame = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": kind.upper(),
        "target_modules": sorted({native(item) for item in members}),
        "task_type": None,
        **carried,
    }
    if kind == "adalora":
        return {**peft_tuners.adalora(members, native, source), **frame}
    if kind == "oft":
        return {**peft_tuners.oft(members, source), **frame}
    frame.pop("bias", None)
    if kind == "ia3":
        inputs = sorted({native(item) for item in members if IA3_KIND.on_input(item.factors)})
        outputs = [native(item) for item in members if native(item) not in inputs]
        # PEFT takes every module that ends with a listed name for a listed one; an expression says it exactly.
        clash = any(path.endswith(name) for path in outputs for name in inputs)
        named: Any = "|".join(path.replace(".", r"\.") for path in inputs) if clash else inputs
        return {**frame, "fan_in_fan_out": False, "feedforward_modules": named, "init_ia3_weights": True}
    frame.pop("fan_in_fan_out", None)
    if kind == "loha":
        ranks = [item.rank or 0 for item in members]
        switches: dict[str, Any] = {"use_effective_conv2d": _effective(members, "t1", "w1_b")}
    else:
        ranks, switches = _lokr(members)
    alphas = [_alpha(item, rank) for item, rank in zip(members, ranks, strict=True)]
    paths = [f"^{native(item)}" for item in members]
    rank = Counter(ranks).most_common(1)[0][0]
    alpha = Counter(alphas).most_common(1)[0][0]
    return {
        **frame,
        "alpha": as_number(alpha),
        "alpha_pattern": {path: as_number(own) for path, own in zip(paths, alphas, strict=True) if own != alpha},
        "init_weights": True,
        "module_dropout": 0.0,
        "r": rank,
        "rank_dropout": 0.0,
        "rank_pattern": {path: own for path, own in zip(paths, ranks, strict=True) if own != rank},
        **switches,
    }


def _alpha(item: Adapter, rank: int) -> Fraction:
    """The alpha that makes the adapter's scale at PEFT's r."""
    if item.rank == rank:
        value = plain(item).value
        return Fraction(rank) if value is None else value
    scale = item.scale
    return scale.numerator * rank if scale.root == 1 else Fraction(float(scale) * rank)


def _effective(members: Sequence[Adapter], core: str, inner: str) -> bool:
    """Whether convolutions have Tucker cores, which one switch says for all; NotRepresentable where some have not."""
    cores = [item for item in members if core in item.factors]
    if cores and any(all(extent == 1 for extent in item.factors[core].shape[2:]) for item in cores):
        raise _refused(cores[0], "PEFT builds no Tucker core for a 1×1 kernel")
    # Without a core a 3×3 kernel is flattened into the columns of `inner`: where it may be, PEFT would want a core.
    flattened = [
        item
        for item in members
        if core not in item.factors and inner in item.factors and _columns(item, inner) % 9 == 0
    ]
    if cores and flattened:
        raise _refused(flattened[0], "some convolutions have a Tucker core and this one may not: one switch is for all")
    return bool(cores)


def _lokr(members: Sequence[Adapter]) -> tuple[list[int], dict[str, Any]]:
    """The r of every module and the switches, for which PEFT builds w1 and w2 of these extents, whole or not."""
    effective = _effective(members, "t2", "w2_b")
    both = any("w1_a" in item.factors for item in members)
    firsts = [_first(item) for item in members]
    for factor in dict.fromkeys((-1, *(extent for first in firsts for extent in first))):
        ranks = [_rank_for(item, first, factor, both=both) for item, first in zip(members, firsts, strict=True)]
        if None not in ranks:
            switches = {"decompose_both": both, "decompose_factor": factor, "use_effective_conv2d": effective}
            return [rank or 0 for rank in ranks], {**switches, "rank_dropout_scale": False}
    worst = next(
        (item for item, first in zip(members, firsts, strict=True) if _rank_for(item, first, -1, both=both) is None),
        members[0],
    )
    raise _refused(worst, "no decompose_factor and r make PEFT build LoKr factors of these shapes")


def _columns(item: Adapter, role: str) -> int:
    return item.factors[role].numel // item.factors[role].shape[0]


def _first(item: Adapter) -> tuple[int, int]:
    factors = item.factors
    if "w1" in factors:
        return factors["w1"].shape[0], factors["w1"].shape[1]
    return factors["w1_a"].shape[0], factors["w1_b"].shape[1]


def _rank_for(item: Adapter, first: tuple[int, int], factor: int, *, both: bool) -> int | None:
    """An r at which PEFT decomposes this module as the file does, or None."""
    factors = item.factors
    shape = kind_of("lokr").weight_shape(factors) or (0, 0)
    (a, c), rows = first, shape[0] or 0
    b = rows // a
    if "w2" in factors:
        d = factors["w2"].shape[1]
    elif "t2" in factors:
        d = factors["w2_b"].shape[1]
    else:
        d = _columns(item, "w2_b")
    fits = _factored(rows, factor) == (a, b) and _factored(c * d, factor) == (c, d)
    if not fits and "w2_b" in factors and "t2" not in factors:
        # A flattened kernel of k × k stands in the columns of w2_b.
        for k in (9, 25, 49, 3, 5, 7, 27):
            if d % k == 0 and _factored(rows, factor) == (a, b) and _factored(c * d // k, factor) == (c, d // k):
                fits, d = True, d // k
                break
    if not fits:
        return None
    rank = kind_of("lokr").rank(factors)
    if rank is None:
        stated = item.settings.get("r")
        rank = max(b, d, *((a, c) if both else ())) if stated is None else int(stated)
    whole_1 = not (both and 2 * rank < max(a, c))
    whole_2 = 2 * rank >= max(b, d)
    return rank if whole_1 == ("w1" in factors) and whole_2 == ("w2" in factors) else None


def _factored(extent: int, factor: int) -> tuple[int, int]:
    """The two factors that PEFT makes of an extent: `factor` where it divides, else the nearest to a square."""
    if factor > 0 and extent % factor == 0:
        return factor, extent // factor
    limit = extent if factor == -1 else factor
    low = max(m for m in range(1, int(extent**0.5) + 1) if extent % m == 0 and m <= limit)
    return low, extent // low


def _refused(item: Adapter, why: str) -> NotRepresentable:
    return NotRepresentable(
        f"{item.target.name}: {why}",
        key=item.origin.stem if item.origin else None,
        path=item.origin.file if item.origin else None,
        hint="--to kohya keeps it as it is; --to-kind lora makes a plain LoRA of it",
    )
