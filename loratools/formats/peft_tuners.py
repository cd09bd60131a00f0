"""adapter_config.json for AdaLoRA and OFT, as PEFT 0.21 builds their layers from it: one setting speaks for all layers.

AdaLoRA prunes: PEFT builds init_r singular values a layer, and keeps those that the layer's mask in rank_pattern names.
OFT's blocks are cut from the width of the inputs by r or by oft_block_size, whichever is not 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.rotation import order_of
from loratools.adapters.settings import beyond_scale
from loratools.errors import MalformedFile, NotRepresentable
from loratools.formats.configs import Config, as_number

# What PEFT takes where an AdaLoRA's configuration is silent; without a schedule it does not even load one.
_SCHEDULE: Mapping[str, Any] = {
    "beta1": 0.85,
    "beta2": 0.85,
    "deltaT": 1,
    "lora_dropout": 0.0,
    "orth_reg_weight": 0.5,
    "r": 8,
    "target_r": 8,
    "tfinal": 0,
    "tinit": 0,
    "use_rslora": False,
}
_MOST = 1 << 16  # PEFT builds init_r rows a layer before it prunes: more than any weight has are no adapter
_PREFIX = "base_model.model."
_SINGULAR = ".lora_E"


def adalora(members: Sequence[Adapter], native: Callable[[Adapter], str], source: Config) -> dict[str, Any]:
    """The fields of an AdaLoRA beside those of every kind; the source's schedule and masks are kept.

    Raises NotRepresentable where alpha or init_r differ between layers, or a layer has more than init_r values;
    MalformedFile for an init_r or a schedule that are no numbers.
    """
    first = members[0]
    initial = _whole(first.settings, "init_r", first)
    alpha = first.alpha.value
    if alpha is None:
        raise _refused(first, "its scale is no lora_alpha / init_r")
    for item in members:
        _same(item, first, "init_r", item.settings["init_r"], initial)
        _same(item, first, "lora_alpha", item.alpha.value, alpha)
        if (item.rank or 0) > initial:
            raise _refused(item, f"it has {item.rank} singular values, and PEFT builds no more than init_r, {initial}")
    schedule = {name: default if source.get(name) is None else source[name] for name, default in _SCHEDULE.items()}
    steps = source.get("total_step")
    if steps is None:
        steps = _whole(schedule, "tinit", first) + _whole(schedule, "tfinal", first) + 1
    masks = _masks(members, native, initial, source.get("rank_pattern") or {})
    return {
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "init_r": initial,
        "lora_alpha": as_number(alpha),
        "rank_pattern": masks or None,
        "total_step": steps,
        **schedule,
    }


def _whole(stated: Mapping[str, Any], name: str, item: Adapter) -> int:
    """A count that a configuration states; MalformedFile for anything else."""
    found = stated[name]
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _MOST:
        file = item.origin.file if item.origin else None
        raise MalformedFile(f"a count up to {_MOST} was expected, found {found!r}", path=file, key=name)
    return found


def _masks(
    members: Sequence[Adapter], native: Callable[[Adapter], str], initial: int, stated: Config
) -> dict[str, list[bool]]:
    """Which of init_r values each layer keeps: the source's mask where it has the layer's rank, else the first ones."""
    found: dict[str, list[bool]] = {}
    for item in members:
        own = item.origin.stem.removeprefix(_PREFIX) if item.origin else native(item)
        mask = stated.get(own + _SINGULAR)
        rank = item.rank or 0
        if isinstance(mask, list) and len(mask) == initial and sum(value is True for value in mask) == rank:
            found[native(item) + _SINGULAR] = mask
        elif rank != initial:
            found[native(item) + _SINGULAR] = [at < rank for at in range(initial)]
    return found


def oft(members: Sequence[Adapter], source: Config) -> dict[str, Any]:
    """The fields of an OFT beside those of every kind, for which PEFT cuts every layer's inputs as the file does.

    Raises NotRepresentable where layers turn in different ways, or no r and no oft_block_size makes all their blocks.
    """
    first = members[0]
    turn = beyond_scale(first.settings)
    for item in members:
        for name, value in beyond_scale(item.settings).items():
            _same(item, first, name, value, turn[name])
    shared = bool(turn["block_share"])
    stated = source.get("r") or 0, source.get("oft_block_size") or 0
    shapes = [_blocks(item) for item in members]
    for r, size in _cuts(stated, shapes, shared=shared):
        wrong = [
            item
            for item, (blocks, order) in zip(members, shapes, strict=True)
            if not _cut_so(blocks, order, r, size, shared=shared, known=(r, size) == stated)
        ]
        if not wrong:
            version = {"peft_version": source["peft_version"]} if source.get("peft_version") else {}
            return {
                "bias": "none",
                "fan_in_fan_out": False,
                "init_weights": True,
                "module_dropout": 0.0,
                "oft_block_size": size,
                "r": r,
                **turn,
                **version,  # the series of before 0.18 was another one, of which PEFT warns
            }
    raise _refused(_odd(members, shapes), "no r and no oft_block_size makes PEFT cut the inputs of all layers so")


def _blocks(item: Adapter) -> tuple[int, int]:
    """(how many blocks, rows of a block)."""
    blocks, entries = item.factors["skew"].shape
    return blocks, order_of(entries)


def _cuts(stated: tuple[Any, Any], shapes: Sequence[tuple[int, int]], *, shared: bool) -> Iterator[tuple[int, int]]:
    """Pairs of r and oft_block_size to try, the source's own first; one of them is always 0."""
    r, size = stated
    if isinstance(r, int) and isinstance(size, int) and min(r, size) == 0 < max(r, size):
        yield r, size
    yield from ((0, order) for order, _ in Counter(order for _, order in shapes).most_common())
    if not shared:
        yield from ((blocks, 0) for blocks, _ in Counter(blocks for blocks, _ in shapes).most_common())


def _cut_so(blocks: int, order: int, r: int, size: int, *, shared: bool, known: bool) -> bool:
    """Whether PEFT makes these blocks of the width; `known` says that the layers were made from this very pair.

    Shared blocks do not tell the width, so only the size that they have, or the pair that made them, is sure.
    """
    if shared:
        return blocks == 1 and (known or size == order)
    width = blocks * order
    return _divisor(width, size) == order if size else _divisor(width, r) == blocks


def _divisor(width: int, wanted: int) -> int:
    """The divisor of a width that PEFT takes for `wanted`: the nearest, the smaller of two."""
    start = min(wanted, width)
    return next(at for step in count() for at in (start - step, start + step) if 0 < at <= width and width % at == 0)


def _odd(members: Sequence[Adapter], shapes: Sequence[tuple[int, int]]) -> Adapter:
    """A layer whose blocks are not of the commonest size."""
    usual = Counter(order for _, order in shapes).most_common(1)[0][0]
    return next((item for item, (_, order) in zip(members, shapes, strict=True) if order != usual), members[0])


def _same(item: Adapter, first: Adapter, name: str, found: object, expected: object) -> None:
    if found != expected:
        raise _refused(item, f"its {name} is {found}, that of {first.target.name} is {expected}: one holds for all")


def _refused(item: Adapter, why: str) -> NotRepresentable:
    return NotRepresentable(
        f"{item.target.name}: {why}",
        key=item.origin.stem if item.origin else None,
        path=item.origin.file if item.origin else None,
        hint="--to-kind lora makes a plain LoRA of it",
    )
