"""What was extracted as a set of adapters in a format, and in words what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.bases.pairing import Pair, Twin
from loratools.errors import NotRepresentable
from loratools.formats.format import Format, Options
from loratools.formats.render import Rendered, render
from loratools.formats.spell import Writer
from loratools.formats.writers import writers
from loratools.model import Alpha, Dialect, Target
from loratools.operations.extraction.factors import Extracted
from loratools.operations.extraction.result import WORDS
from loratools.operations.extraction.whole import Beside, beside_factors, refused
from loratools.operations.extraction.wishes import FULL, Wishes
from loratools.tensors.lazy import LazyTensor

# sort of a difference that is stored whole → its role, for a weight and for a bias
_ROLES = {"norm": ("norm_diff", "norm_bias_diff"), "bias": ("diff", "bias_diff"), "embedding": ("diff", "bias_diff")}


def adapters_of(found: Sequence[Extracted]) -> tuple[Adapter, ...]:
    """One adapter a target: a LoRA with what stands beside it, or differences alone. Alpha is the rank."""
    held: dict[Target, dict[str, LazyTensor]] = {}
    norms = {item.twin.target for item in found if item.twin.sort == "norm"}
    for item in found:
        factors = {"down": item.down, "up": item.up, "magnitude": item.magnitude}
        if item.stored is not None:
            factors = {_ROLES[item.twin.sort][item.twin.is_bias]: item.stored}
        kept = {role: tensor for role, tensor in factors.items() if tensor is not None}
        if kept:
            held.setdefault(item.twin.target, {}).update(kept)
    adapters = []
    for target, roles in held.items():
        kind = "lora" if "down" in roles else "norm" if target in norms else "full"
        alpha = Alpha(Fraction(roles["down"].shape[0]), "tensor") if "down" in roles else Alpha()
        adapters.append(Adapter(target, kind, roles, alpha))
    return tuple(adapters)


def rendered_set(
    found: Sequence[Extracted], models: Pair, form: Format, asked: Wishes, *, allow_lossy: bool, draft: bool = False
) -> Rendered:
    """The set laid out in a format; raises NotRepresentable for what it cannot hold.

    In a `draft`, in which everything is taken to have changed, what PEFT saves whole is not refused yet.
    """
    config: dict[str, Any] = {"fan_in_fan_out": True} if models.turned else {}
    held = _set(found, models, form, asked, {"": config})
    spelt = _writers(held, models, form)
    lost: list[str] = []
    if form.folder:
        besides, unheld = beside_factors(found, models, spelt)
        if unheld and not (allow_lossy or draft):
            raise refused(*unheld[0])
        lost = [f"{twin.name}{', if it changed' if draft else ''}: {reason}" for twin, reason in unheld]
        held = replace(
            held,
            adapters=_with_biases(held.adapters, found, besides),
            extras={component: beside.tensors for component, beside in besides.items() if beside.tensors},
            configs={component: {**config, **beside.config} for component, beside in besides.items()},
        )
    made = render(held, form, spelt, allow_lossy=allow_lossy)
    return replace(made, lost=(*made.lost, *lost))


def _set(
    found: Sequence[Extracted], models: Pair, form: Format, asked: Wishes, configs: Mapping[str, Any]
) -> AdapterSet:
    """The adapters: for PEFT, which saves other tensors in their modules, those with factors alone."""
    adapters = adapters_of([item for item in found if item.has_factors] if form.folder else found)
    if not adapters:
        what = ", and peft holds other tensors beside layers only" if form.folder and found else ""
        raise NotRepresentable(f"the options leave every layer out{what}", hint="see --pattern and --full")
    ids = (models.table.id,) if models.table else models.candidates or ("llm",)
    return AdapterSet(ids, Dialect(form.id, {}), adapters, metadata=_metadata(models, form, asked), configs=configs)


def _writers(held: AdapterSet, models: Pair, form: Format) -> dict[str, Writer]:
    return writers(held, form, models.table, Options(names=models.names), (models.table,) if models.table else ())


def _with_biases(
    adapters: Sequence[Adapter], found: Sequence[Extracted], besides: Mapping[str, Beside]
) -> tuple[Adapter, ...]:
    """Layers whose factors add the change of a bias: at a scale of 1, as alpha is the rank."""
    stored = {item.twin.target: item.stored for item in found if item.twin.sort == "bias" and item.stored is not None}
    return tuple(
        replace(item, factors={**item.factors, "up_bias": stored[item.target]})
        if item.target in stored and besides[item.target.component].bias_of_factors
        else item
        for item in adapters
    )


def _metadata(models: Pair, form: Format, asked: Wishes) -> dict[str, str]:
    """What kohya's readers look at: the model version, and the rank."""
    if form.alpha != "tensor":
        return {}
    rank = "Dynamic" if asked.rank is None or asked.patterns else str(asked.rank)
    found = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    versions = models.table.base_versions if models.table else ()
    if versions:
        found["ss_base_model_version"] = versions[0]
    return found


def drafted(twins: Sequence[Twin], asked: Wishes, whole: Sequence[str] = ()) -> list[Extracted]:
    """Every tensor as if it had changed, with zeros, and rank 1 where the rank is not known; those of the sorts `whole`
    as they were tuned.
    """
    found = []
    for twin in twins:
        made = Extracted(twin, "changed")
        if twin.sort in asked.full and twin.sort in whole:
            made = Extracted(twin, "changed", stored=twin.tuned)
        elif twin.sort in asked.full:
            made = Extracted(twin, "changed", stored=LazyTensor.zeros(asked.dtype, twin.base.shape))
        elif twin.sort == "layer" and (rank := asked.rank_of(twin)) != 0:
            width = rank or 1
            made = Extracted(
                twin,
                "changed",
                rank=width,
                down=LazyTensor.zeros(asked.dtype, (width, *twin.base.shape[1:])),
                up=LazyTensor.zeros(asked.dtype, (twin.base.shape[0], width, *(1,) * (len(twin.base.shape) - 2))),
                magnitude=LazyTensor.zeros(asked.dtype, twin.base.shape[:1]) if asked.dora else None,
            )
        found.append(made)
    return found


def left_out(found: Sequence[Extracted], models: Pair) -> Iterator[str]:
    """A line for whatever changed and is not in the output."""
    words = {sort: word for word, sort in FULL.items()}
    counts: Counter[tuple[str, str]] = Counter()
    for item in found:
        if item.state != "changed" or item.has_factors or item.stored is not None:
            continue
        if item.twin.sort in words:
            counts[item.twin.target.component, item.twin.sort] += 1
        elif item.twin.sort == "layer":
            yield f"{item.twin.name}: left out by a pattern"
        elif item.twin.sort == "parameter":
            yield f"{item.twin.name}: changed, and it is a parameter of no layer"
        else:
            yield f"{item.twin.name}: changed, and a depthwise convolution is no product of two matrices"
    for (component, sort), count in counts.items():
        yield f"{component}: {count} {WORDS[sort]} changed (--full {words[sort]} keeps them)"
    for key, (ours, theirs) in models.unplaced.items():
        if not ours.same_bytes(theirs):
            yield f"{key}: changed, and no table knows what it is"
