"""The base of a rebuild as a pipeline folder: as it is, or a single file under a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.checkpoint import Checkpoint
from loratools.bases.pipeline_index import PIPELINE, components_of
from loratools.errors import ArchitectureMismatch, UsageError, WrongRole
from loratools.operations.lora import Lora
from loratools.operations.merging.matches import shared_architecture
from loratools.operations.rebuilding.tokenizers import tokenizer_files
from loratools.operations.recipes.record import Ingredient
from loratools.pipelines.assembly import assemble
from loratools.pipelines.hints import Hints, built_in_settings
from loratools.pipelines.settings import as_json, settings_in
from loratools.pipelines.unpack import unpack
from loratools.tensors.source import LocalFile


@dataclass(frozen=True)
class PipelineBase:
    """A pipeline folder's checkpoint, and what a single file needed to become one."""

    checkpoint: Checkpoint
    extra: Mapping[str, bytes | LocalFile]
    ingredients: tuple[Ingredient, ...] = ()
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def pipeline_base(
    checkpoint: Checkpoint,
    loras: Sequence[Lora],
    arch: str | None,
    *,
    config: Path | None,
    tokenizer: Sequence[str],
    prediction: str | None,
    allow_partial: bool,
) -> PipelineBase:
    """The base as a pipeline folder; a single file takes its configuration from `config`, else what is built in.

    Raises UsageError for options that only a single file needs, WrongRole for what is neither, ArchitectureMismatch
    where file and configuration disagree, Unavailable for what is nowhere on this machine.
    """
    if checkpoint.folder and PIPELINE in checkpoint.others:
        refuse_for_folder(checkpoint.name, config, tokenizer, prediction)
        return PipelineBase(checkpoint, {})
    if len({id(item.part) for item in checkpoint.weights}) != 1:
        raise WrongRole(
            f"the folder has no {PIPELINE}",
            path=checkpoint.name,
            hint="give a pipeline's folder, or one checkpoint file",
        )
    name = arch if arch in checkpoint.base.candidates else shared_architecture(checkpoint.base, loras)[1]
    table = next((known for known in ARCHITECTURES if known.id == name), None)
    if table is None:
        raise ArchitectureMismatch(
            "the file is of no architecture whose names are known", path=checkpoint.name, hint="merge keeps its names"
        )
    if config is not None and prediction is not None:
        raise UsageError("--config says what the model predicts", hint="leave --prediction-type away")
    hints = Hints(settings_in(config)) if config is not None else built_in_settings(checkpoint, table, prediction)
    settings = hints.settings
    assembly = assemble(checkpoint, unpack(checkpoint, table, allow_partial=allow_partial), table, settings)
    tokenizers = tokenizer_files(settings, table.id, tokenizer)
    extra = {PIPELINE: as_json(assembly.index), **_present(settings.files, assembly.index), **tokenizers}
    used = tuple((name, file) for name, file in settings.files.items() if isinstance(file, LocalFile))
    ingredients: tuple[Ingredient, ...] = (
        (Ingredient("config", config.name if config else "built in", used),) if config else ()
    )
    ingredients += (Ingredient("tokenizer", "tokenizers", tuple(tokenizers.items())),) if tokenizers else ()
    return PipelineBase(
        assembly.checkpoint, extra, ingredients, assembly.left_out, (*hints.warnings, *assembly.warnings)
    )


def refuse_for_folder(folder: str, config: Any, tokenizer: Any, prediction: str | None) -> None:
    """Raise UsageError for options that only a single file needs."""
    for option, value in {"--config": config, "--tokenizer": tokenizer, "--prediction-type": prediction}.items():
        if value:
            raise UsageError(f"{option} is for a single file", path=folder, hint="a pipeline folder has its own")


def _present(files: Mapping[str, bytes | LocalFile], index: Mapping[str, Any]) -> dict[str, bytes | LocalFile]:
    """The configuration files of the components that the pipeline has after all."""
    there = components_of(index)
    return {name: file for name, file in files.items() if name.partition("/")[0] in there}
