"""rebuild: a complete pipeline folder, or single file, of a base model with adapters merged in, loaded and run once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.checkpoint import Checkpoint, open_checkpoint
from loratools.bases.variants import of_variant, variants_of
from loratools.errors import ArchitectureMismatch, MalformedFile
from loratools.formats.configs import parse_json
from loratools.hub.cards import card_data
from loratools.hub.references import is_remote
from loratools.hub.tasks import task_of
from loratools.operations.header.producer import trigger_words
from loratools.operations.located import locate, unweighted
from loratools.operations.lora import Lora
from loratools.operations.merge import plan_merge
from loratools.operations.merging.matches import Weighted, opened
from loratools.operations.rebuilding.card import Card
from loratools.operations.rebuilding.output import RebuildOutput, bytes_of, index_of
from loratools.operations.rebuilding.pending import PendingRebuild
from loratools.operations.rebuilding.pipeline_base import pipeline_base
from loratools.operations.rebuilding.result import Rebuild, RebuildPlan
from loratools.operations.rebuilding.tokenizers import texts
from loratools.operations.recipes.record import Ingredient, named_files
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import Progress

_SCHEDULER = "scheduler/scheduler_config.json"


def rebuild(
    base: str | os.PathLike[str],
    adapters: Sequence[Weighted] = (),
    out: str | os.PathLike[str] | None = None,
    *,
    single_file: str | os.PathLike[str] | None = None,
    check: bool = True,
    overwrite: bool = False,
    if_needed: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    **how: Any,
) -> Rebuild:
    """Merge `adapters` into `base` and write a pipeline folder `out`, a single file, or both: then both or neither.

    `how` is as for `plan_rebuild`, the rest as for `PendingRebuild.save`.
    """
    return plan_rebuild(base, adapters, **how).save(
        out,
        single_file=single_file,
        check=check,
        overwrite=overwrite,
        if_needed=if_needed,
        threads=threads,
        progress=progress,
    )


def plan_rebuild(
    base: str | os.PathLike[str],
    adapters: Sequence[Weighted] = (),
    *,
    config: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | Sequence[str] | None = None,
    copy: bool = False,
    variant: str | None = None,
    prediction_type: str | None = None,
    arch: str | None = None,
    allow_partial: bool = False,
    unsafe_pickle: bool = False,
    **how: Any,
) -> PendingRebuild:
    """Plan a pipeline: `base` is its folder, a single-file checkpoint, `owner/name` on the Hub, or `auto`.

    For a single file `config` names a pipeline folder whose configurations (and weights of what the file lacks) are
    taken; without it they are built in. `tokenizer` is a folder, or several `NAME=DIR`. Without `copy` weights that
    nothing changes become hard links where possible. `variant` keeps that one alone; `prediction_type` is for a single
    file that does not tell. Everything else is as for `plan_merge`.

    Raises Unavailable for what is not on this machine and cannot be had, ArchitectureMismatch where file and
    configuration disagree, and what `plan_merge` raises.
    """
    given = [opened((item, by), arch, unsafe_pickle=unsafe_pickle) for item, by in map(unweighted, adapters)]
    loras = [lora for lora, _ in given]
    place = locate(base, loras, variant=variant, pickles=unsafe_pickle)
    checkpoint = _of_architecture(open_checkpoint(place.path, unsafe_pickle=unsafe_pickle), arch)
    made = pipeline_base(
        checkpoint, loras, arch,
        config=Path(config) if config is not None else None,
        tokenizer=texts(tokenizer),
        prediction=prediction_type,
        allow_partial=allow_partial,
    )  # fmt: skip
    checkpoint, left = made.checkpoint, list(made.left_out)
    if variant is not None:
        checkpoint, names = of_variant(checkpoint, variant)
        left += [f"{name}: not of the variant {variant}" for name in names]
    pending = plan_merge(
        checkpoint, given, bare=True, arch=arch, allow_partial=allow_partial, unsafe_pickle=unsafe_pickle, **how
    )
    ours = {"config": bool(config), "copy": copy, "variant": variant, "prediction_type": prediction_type}
    parameters = {**pending.output.parameters, **ours}
    ingredients = (
        Ingredient("base", place.name, named_files(pending.output.base_files, _root(place.path))),
        *(
            Ingredient("adapter", _called(item, lora), named_files(_files(lora), _root(Path(lora.name))), by)
            for (item, _), (lora, by) in zip(map(unweighted, adapters), given, strict=True)
        ),
        *made.ingredients,
    )
    index = parse_json(index_of(checkpoint, made.extra), path=place.path)
    variants = variants_of(checkpoint)
    card = Card(
        ingredients,
        str(index.get("_class_name", "DiffusionPipeline")),
        task_of([pending.plan.architecture] if pending.plan.architecture else checkpoint.base.candidates),
        place.hub.repository if place.hub else None,
        _licence(place.path),
        {_called(lora.name, lora): words for lora in loras if (words := trigger_words(lora.adapter_set.metadata))},
        variants[0] if variants else None,
        linked=not copy,
    )
    settled = (
        {lora.architecture for lora in loras} if len(checkpoint.base.candidates) > 1 else checkpoint.base.candidates
    )
    name = pending.plan.architecture
    table = next((known for known in ARCHITECTURES if known.id == name and name in settled), None)
    output = RebuildOutput(
        merged=replace(pending.output, operation="rebuild", parameters=parameters),
        table=table,
        ingredients=ingredients,
        card=card,
        parameters=parameters,
        extra=made.extra,
        copy=copy,
        forbidden=tuple(Path(item) for item in (place.path, config) if item is not None),
        metadata=_single_metadata(table.id if table else None, made.extra, checkpoint),
    )
    plan = RebuildPlan(
        pending.plan,
        card.pipeline,
        variants,
        output.sizes("linked"),
        output.sizes("copied"),
        output.sizes("written"),
        (*left, *output.left_out),
        (*made.warnings, *pending.plan.warnings),
    )
    return PendingRebuild(plan, pending, output)


def _of_architecture(checkpoint: Checkpoint, arch: str | None) -> Checkpoint:
    """The base as the architecture that the caller names; raises ArchitectureMismatch where it fits others alone."""
    found = checkpoint.base.candidates
    if arch is None or not found:
        return checkpoint
    if arch not in found:
        raise ArchitectureMismatch(
            f"the base model is {' or '.join(found)}, not {arch}",
            path=checkpoint.name,
            hint="leave --arch away",
            expected=[arch],
            found=list(found),
        )
    return replace(checkpoint, base=replace(checkpoint.base, candidates=(arch,)))


def _root(place: Path) -> Path | None:
    return place if place.is_dir() else None


def _files(lora: Lora) -> tuple[LocalFile, ...]:
    return lora.reading.opened.files


def _called(item: Any, lora: Lora) -> str:
    """What a record calls an adapter: its Hub reference, or its bare name; never a path."""
    if is_remote(item):
        return str(item)
    return Path(lora.name).name


def _licence(base: Path) -> str | None:
    """What the card of a base in a folder says of its licence."""
    try:
        found = card_data(base).get("license") if base.is_dir() else None
    except MalformedFile:  # a card that nobody can read says nothing about a licence
        return None
    return found if isinstance(found, str) else None


def _single_metadata(
    architecture: str | None, extra: Mapping[str, bytes | LocalFile], checkpoint: Checkpoint
) -> dict[str, str]:
    """What a single file says of itself: names and shapes do not tell which of two noises SD2 was made to predict."""
    metadata = {"format": "pt"}
    scheduler = extra.get(_SCHEDULER) or checkpoint.others.get(_SCHEDULER)
    if architecture != "sd2" or scheduler is None:
        return metadata
    told = parse_json(bytes_of(scheduler), path=checkpoint.name, key=_SCHEDULER, infinite=True)
    prediction = told.get("prediction_type", "epsilon")
    which = "768-v" if prediction == "v_prediction" else "512"
    return metadata | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-v2-{which}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
    }
