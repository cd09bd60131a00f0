"""Whether a model was tuned from another: by what both hold, and by the weights of a few layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

from loratools.adapters.likeness import JUDGED, STRANGERS, Likeness, likeness
from loratools.adapters.rounding import beyond_rounding
from loratools.bases.pairing import Pair, Twin
from loratools.errors import ArchitectureMismatch, UnrelatedModels
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

ENOUGH = 0.9
"""The share of a component's weights that both models must hold."""

_SAMPLE = 12  # layers that are read before all others
_BLOCKS = 4  # blocks of rows of a layer: more tell no more
_WHITE_SHARE = 0.9  # of the judged layers
_FEW = 4  # layers: fewer prove nothing about noise
_NEARER = 0.5  # an average this much nearer than the weights themselves is what the model was tuned from
_FORCE = "--force goes on all the same"


def require_shared(pair: Pair, names: tuple[str, str], *, force: bool) -> list[str]:
    """Lines about what the models do not share.

    Raises UnrelatedModels where that is too much, ArchitectureMismatch for weights of different shapes; with `force`
    only where there is nothing to compare at all.
    """
    if not pair.twins:
        raise UnrelatedModels(
            "the two models have no weight in common",
            path=names[1],
            hint=f"compare it with the model that it was tuned from, not with {names[0]}",
        )
    if pair.misshapen and not force:
        raise ArchitectureMismatch(
            f"{len(pair.misshapen)} weights have different shapes, the first {pair.misshapen[0]}",
            path=names[1],
            hint=f"{names[0]} must be the model that it was tuned from; --force leaves such weights out",
            misshapen=list(pair.misshapen),
        )
    thin = {component: share for component, share in pair.coverage.items() if share < ENOUGH}
    if thin and not force:
        component, share = min(thin.items(), key=lambda item: item[1])
        raise UnrelatedModels(
            f"the two models share {100 * share:.0f} % of the weights of {component}",
            path=names[1],
            hint=f"they must be one model before and after tuning; {_FORCE}",
            unpaired=list(pair.unpaired[:20]),
        )
    lines = [f"{line} (shapes differ)" for line in pair.misshapen]
    lines += [*pair.one_sided, *pair.unpaired]
    lines += [f"{name}: a layer of checkpoints alone, not compared" for name in pair.beyond]
    return lines


def require_kinship(pair: Pair, names: tuple[str, str], *, force: bool) -> list[str]:
    """Warnings from the weights of a few layers, read before the long work.

    Raises UnrelatedModels, unless `force`, where the weights are strangers', where the delta is white noise, and where
    the tuned model came from the base's averaged weights (EMA) instead of those that are compared.
    """
    chosen = _sample(pair.twins)
    problem = _averaged(pair, chosen, names) or _unlike(chosen, names)
    if problem is None:
        return []
    if not force:
        raise UnrelatedModels(problem, path=names[1], hint=f"compare with the model that it was tuned from; {_FORCE}")
    return [problem]


def _sample(twins: Iterable[Twin]) -> list[Twin]:
    """A few layers from the beginning to the end, large enough to tell where there are such."""
    layers = [twin for twin in twins if twin.sort == "layer"]
    telling = [twin for twin in layers if min(twin.matrix) >= JUDGED] or layers
    step = max(1, len(telling) // _SAMPLE)
    return telling[::step][:_SAMPLE]


def _unlike(chosen: Sequence[Twin], names: tuple[str, str]) -> str | None:
    """Why the weights cannot be those of a model and its tune."""
    found: list[Likeness] = []
    for twin in chosen:
        ours, theirs = _part(twin)
        if not beyond_rounding(ours, theirs, twin.stored):
            continue  # rounding is noise, and no change
        alike = likeness(ours, theirs)
        if alike is not None:
            found.append(alike)
    if not found:
        return None
    cosine = median(item.cosine for item in found)
    if cosine < STRANGERS:
        change = median(item.change for item in found)
        return (
            f"{names[0]} and {names[1]} are strangers: their weights have a cosine of {cosine:.2f} and differ by "
            f"{100 * change:.0f} % of their norm (medians of {len(found)} layers)"
        )
    judged = [item for item in found if item.peak is not None]
    white = sum(item.white for item in judged)
    if len(judged) >= _FEW and white >= _WHITE_SHARE * len(judged):
        return (
            f"the difference is white noise: in {white} of {len(judged)} layers no direction stands out, as between a "
            "model and another average or precision of it"
        )
    return None


def _averaged(pair: Pair, chosen: Sequence[Twin], names: tuple[str, str]) -> str | None:
    """Why the base's averaged weights, and not its own, are what the model was tuned from."""
    import torch

    nearer = compared = 0
    for twin in chosen:
        average = _average(pair, twin)
        if average is None:
            continue
        ours, theirs = _part(twin)
        mean = average.rows(0, len(ours)).load().float().reshape(ours.shape)
        apart, other = (float(torch.linalg.vector_norm(theirs.double() - side.double())) for side in (ours, mean))
        compared += 1
        nearer += other < _NEARER * apart
    if compared and 2 * nearer > compared:
        return (
            f"{names[1]} came from the averaged weights (model_ema) of {names[0]}, not from the plain ones that they "
            f"are compared with: those are nearer in {nearer} of {compared} layers"
        )
    return None


def _average(pair: Pair, twin: Twin) -> LazyTensor | None:
    """The exponential moving average of a base weight, as LDM's checkpoints name it: the dots left out."""
    native = pair.base.weights.get((twin.target.component, twin.target.paths[0]))
    if native is None or len(twin.target.paths) > 1 or native.placement.layout != "rows":
        return None
    name = f"model_ema.{native.key.removeprefix('model.').replace('.', '')}"
    found = native.source[name] if name in native.source.keys() else None  # noqa: SIM118 (a source has no `in`)
    return found if found is not None and found.numel == twin.base.numel else None


def _part(twin: Twin) -> tuple[torch.Tensor, torch.Tensor]:
    """Both versions in memory, the first rows of them where they are large."""
    import torch

    blocks = list(islice(twin.blocks(), _BLOCKS))
    return torch.cat([ours for _, ours, _ in blocks]), torch.cat([theirs for _, _, theirs in blocks])
