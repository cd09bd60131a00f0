"""Adapters of stacked experts, as PEFT writes them (`target_parameters`): one pair of matrices for all of a parameter.

Of E experts at rank r, A [E·r, in] has the experts' rows one after another, and B [out, r·E] their columns in turn. The
keys do not say the parameter: PEFT wraps the module once for each, the first of the class innermost (`.base_layer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loratools.architectures.llm_namings import STACKED
from loratools.errors import IncompleteAdapter, UnreadableForm
from loratools.formats.collect import Group
from loratools.formats.configs import Config, rank_of
from loratools.formats.detect import Stem
from loratools.formats.opening import Part
from loratools.tensors.interleave import Dealer

INNER = ".base_layer"
"""The level that stands between a module and what another parameter's adapter wraps."""
PREFIX = "base_model.model."
ROUTER, WEIGHT = "mlp.gate", "weight"
"""What deals the tokens out to experts: a matrix like a linear layer's, which transformers 5 makes a parameter."""


class Stacked(NamedTuple):
    """The pair of one parameter: where it stands, its module's path, and its name in that."""

    stem: Stem
    module: str
    parameter: str


def unstacked(groups: dict[Stem, Group], parts: Sequence[Part]) -> tuple[dict[Stem, Group], frozenset[Stem]]:
    """The groups with one for each expert in the place of those that are a whole parameter's, and the stems of these.

    Raises IncompleteAdapter where a configuration and the factors do not go together, UnreadableForm where they do not
    tell the parameter.
    """
    dealt: dict[Stem, dict[Stem, Group]] = {}
    for part in parts:
        targets = part.config.get("target_parameters") if part.config else None
        if not part.config or not targets:
            continue
        dealer = Dealer()
        for item in _stacked([stem for stem in groups if stem[0] == part.component], targets):
            if item.parameter != WEIGHT:
                dealt[item.stem] = _experts(groups[item.stem], item, part.config, dealer)
    if not dealt:
        return groups, frozenset()
    found: dict[Stem, Group] = {}
    for stem, group in groups.items():
        for name, member in (dealt.get(stem) or {stem: group}).items():
            other = found.setdefault(name, member)
            if other is not member:
                keys = [next(iter(one.found.values())).key for one in (other, member)]
                raise IncompleteAdapter(
                    f"one expert has two adapters: {keys[0]} and {keys[1]}", path=group.file, key=keys[1]
                )
    return found, frozenset(stem for experts in dealt.values() for stem in experts)


def _stacked(stems: Sequence[Stem], targets: object) -> list[Stacked]:
    """Which stems are a parameter's, and which one's."""
    listed = [str(name) for name in targets] if isinstance(targets, list | tuple | set) else []
    by_module: dict[str, list[Stem]] = {}
    for stem in stems:
        by_module.setdefault(_module(stem), []).append(stem)
    found: list[Stacked] = []
    for module, members in by_module.items():
        names = _parameters(module, listed)
        if not names:
            continue
        if len(names) > 1 and not set(names) <= set(STACKED):
            raise UnreadableForm(
                f"nothing tells which adapter is for which parameter of {module} ({', '.join(names)})",
                key=members[0][1],
                form="peft",
                kinds=("lora",),
            )
        if len(names) != len(members):
            raise IncompleteAdapter(
                f"the configuration names {len(names)} parameters of {module} ({', '.join(names)}), the file has "
                f"adapters of {len(members)}",
                key=members[0][1],
            )
        outermost = sorted(members, key=lambda stem: stem[1].count(INNER))
        found += [Stacked(stem, module, name) for stem, name in zip(outermost, reversed(names), strict=True)]
    return found


def _module(stem: Stem) -> str:
    """The path of the module that a stem is about, without the levels of PEFT's wrappers."""
    path = stem[1].removeprefix(PREFIX)
    while path.endswith(INNER):
        path = path.removesuffix(INNER)
    return path


def _parameters(module: str, targets: Sequence[str]) -> list[str]:
    """The parameters of a module that are targets, in the class's order, as PEFT compares names: by their ends."""
    named: dict[str, None] = {}
    for target in targets:
        where, _, name = target.rpartition(".")
        if not where and name not in STACKED:
            continue
        if where == module or module.endswith(f".{where}") or (not where and module.endswith("experts")):
            named[name] = None
    order = {name: at for at, name in enumerate(STACKED)}
    return sorted(named, key=lambda name: (order.get(name, len(order)), name))


def _experts(group: Group, item: Stacked, config: Config, dealer: Dealer) -> dict[Stem, Group]:
    """A group for each expert, over views of the factors of all."""
    if set(group.found) != {"down", "up"}:
        raise IncompleteAdapter(
            "an adapter of stacked experts is two matrices", path=group.file, key=group.stem[1], found=list(group.found)
        )
    down, up = group.found["down"], group.found["up"]
    matrices = len(down.tensor.shape) == len(up.tensor.shape) == 2
    rows, columns = (down.tensor.shape[0], up.tensor.shape[1]) if matrices else (0, 0)
    rank = rank_of(config, [f"{item.module}.{item.parameter}"])
    if not rank or rank < 0 or not rows or rows % rank or rows != columns:
        raise IncompleteAdapter(
            f"{item.module}.{item.parameter}: experts of rank {rank} do not make factors of {list(down.tensor.shape)} "
            f"and {list(up.tensor.shape)}",
            path=group.file,
            key=down.key,
            hint="keep the adapter_config.json that was saved beside the weights",
        )
    count = rows // rank
    found: dict[Stem, Group] = {}
    for at, columns_of in enumerate(dealer.dealt(up.tensor, count)):
        stem = (group.stem[0], f"{PREFIX}{item.module}.{at}.{item.parameter}")
        held = {
            "down": down._replace(tensor=down.tensor.rows(at * rank, (at + 1) * rank)),
            "up": up._replace(tensor=columns_of),
        }
        found[stem] = Group(stem, group.file, held)
    return found
