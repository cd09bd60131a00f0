"""What a single file tells of the configuration that it needs: prediction type, resolution, channels of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loratools.architectures.architecture import Architecture
from loratools.bases.checkpoint import Checkpoint
from loratools.errors import UnsupportedFile, UsageError, nearest
from loratools.pipelines.blueprints import architectures, blueprint
from loratools.pipelines.settings import Settings, settings_of

PREDICTIONS = ("epsilon", "v_prediction")
_SPELLINGS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}

# (architecture, channels of the denoiser's input) → the pipeline class that feeds it so many
CHANNELS = {
    ("sd1", 8): "StableDiffusionInstructPix2PixPipeline",
    ("sd1", 9): "StableDiffusionInpaintPipeline",
    ("sd2", 9): "StableDiffusionInpaintPipeline",
    ("sdxl", 8): "StableDiffusionXLInstructPix2PixPipeline",
    ("sdxl", 9): "StableDiffusionXLInpaintPipeline",
}
_PLAIN_CHANNELS, _INPAINTING = 4, 9
_ZERO_SNR: Mapping[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""What a model trained down to pure noise, which the key `ztsnr` marks, asks of its scheduler."""
_SD2_BASE_STEPS = 875_000
"""The step at which Stable Diffusion 2's 512-pixel base models were saved; the 768-pixel ones have others."""


@dataclass(frozen=True)
class Hints:
    """The built-in configuration for a file, and what was assumed, in words."""

    settings: Settings
    warnings: tuple[str, ...] = field(default=())


def built_in_settings(file: Checkpoint, table: Architecture, prediction: str | None = None) -> Hints:
    """The published configuration of an architecture, fitted to what the file tells.

    `prediction` is "epsilon" or "v_prediction", where the caller knows. Raises UnsupportedFile for an architecture
    whose configuration is not built in, UsageError for another word.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise UsageError(f"unknown prediction type {prediction!r}", hint=nearest(prediction, PREDICTIONS))
    if table.id not in architectures("full"):
        raise UnsupportedFile(
            f"the configuration of {table.id} is not built in",
            path=file.name,
            hint="--config DIR names a pipeline folder whose configuration is used",
        )
    told, pixels, warnings = _prediction(file, table, prediction)
    plan = blueprint(table.id, "full", pixels=pixels)
    changes: dict[str, dict[str, Any]] = {}
    if told is not None:
        changes["scheduler"] = {"prediction_type": told}
    if "ztsnr" in file.weights[0].part:
        changes.setdefault("scheduler", {}).update(_ZERO_SNR)
    channels = _channels(file, table)
    pipeline = None
    if channels not in (None, _PLAIN_CHANNELS) and table.denoiser.name == "unet":
        pipeline = CHANNELS.get((table.id, channels or 0))
        if pipeline is None:
            raise UnsupportedFile(
                f"no pipeline is known for a {table.id} model of {channels} input channels",
                path=file.name,
                hint="--config DIR names a pipeline folder whose configuration is used",
            )
        changes["unet"] = {"in_channels": channels}
    return Hints(settings_of(plan, changes, pipeline), warnings)


def _prediction(
    file: Checkpoint, table: Architecture, given: str | None
) -> tuple[str | None, int | None, tuple[str, ...]]:
    """The prediction type (None: the blueprint's own), the resolution that picks a blueprint, and what was assumed."""
    source, metadata = file.weights[0].part, file.weights[0].metadata
    found = given or _SPELLINGS.get(metadata.get("modelspec.prediction_type", "").lower())
    if found is None and "v_pred" in source:
        found = "v_prediction"
    if table.id != "sd2":
        return found, None, ()
    specified = metadata.get("modelspec.architecture", "")
    if found is None and specified.startswith("stable-diffusion-v2-"):
        found = "epsilon" if "512" in specified else "v_prediction"
    if found is None and _channels(file, table) == _INPAINTING:
        found = "epsilon"  # the one inpainting model of this family was published for 512 pixels
    if found is None and "global_step" in source and source["global_step"].item() == _SD2_BASE_STEPS:
        found = "epsilon"
    if found is not None:
        return found, (512 if found == "epsilon" else 768), ()
    line = (
        "the file does not tell whether it predicts noise (512 pixels) or velocity (768 pixels): v_prediction is "
        "assumed; --prediction-type epsilon, or --config, says otherwise"
    )
    return "v_prediction", 768, (line,)


def _channels(file: Checkpoint, table: Architecture) -> int | None:
    """The channels of the denoiser's input, by its first convolution."""
    weight = file.base.of(table).weight(table.denoiser.name, "conv_in")
    return weight.shape[1] if weight is not None else None
