"""The proof that a pipeline folder is one: diffusers loads it, every tensor is the one in the files, one step runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.architectures.registry import architecture
from loratools.bases.checkpoint import Checkpoint, open_checkpoint
from loratools.bases.companions import companion
from loratools.bases.pipeline_index import OPTIONAL, PIPELINE, is_component
from loratools.bases.variants import files_of, variants_of
from loratools.errors import InternalError, NonFinite, UnsupportedFile
from loratools.formats.opening import read_config
from loratools.pipelines.calls import NEEDS_NO_PICTURE, asked, latent_pixels, parameters_of, sized
from loratools.pipelines.quiet import quiet_libraries
from loratools.pipelines.unexported import exported
from loratools.pipelines.unpack import unpack
from loratools.pipelines.widened import compute_wide
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch
    from torch import nn

PROMPT = "a photograph of an astronaut riding a horse"
LATENTS = 8
"""Height and width of the latents of the trial step."""
DIVIDES = ("UnCLIPScheduler",)
"""Schedulers that divide by the number of steps less one, as all do that stretch what they end with."""
_ROOT = "text_model."


@dataclass(frozen=True, slots=True)
class Trial:
    """What was loaded and run: the pipeline's class, the variants that were loaded, the tensors of each component that
    were compared with the files, and the size of the picture in pixels, or why no step was run.
    """

    pipeline: str
    variants: tuple[str | None, ...]
    tensors: Mapping[str, int]
    pixels: tuple[int, int] | None
    why_not_run: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "pipeline": self.pipeline,
            "variants": list(self.variants),
            "tensors": dict(self.tensors),
            "pixels": list(self.pixels) if self.pixels else None,
            "why_not_run": self.why_not_run,
        }


def try_folder(folder: Path) -> Trial:
    """Load a pipeline folder with diffusers, in every variant it can be loaded as, and run one step at a small size.

    Weights keep the dtypes of their files; components of several dtypes run in the widest. Raises UnsupportedFile for
    what diffusers does not load or run, InternalError for a tensor that is not the file's, NonFinite for a picture
    without numbers.
    """
    checkpoint = open_checkpoint(folder)
    variants = variants_of(checkpoint)
    trial: Trial | None = None
    with quiet_libraries():
        for variant in variants:
            pipeline = _loaded(folder, checkpoint, variant)
            tensors = _compared(pipeline, checkpoint, variant)
            if trial is None:
                pixels, why = run_step(pipeline, folder)
                trial = Trial(type(pipeline).__name__, variants, tensors, pixels, why)
            del pipeline
    if trial is None:
        raise UnsupportedFile("no variant of the weights has every component", path=folder)
    return trial


def _loaded(folder: Path, checkpoint: Checkpoint, variant: str | None) -> Any:
    from diffusers import DiffusionPipeline

    with (
        exported(),
        _refused(f"diffusers does not load the {f'variant {variant} of the ' if variant else ''}pipeline", folder),
    ):
        return DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=_dtypes(checkpoint, variant),
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
        )


def try_single_file(file: Path, config: Path, architecture_id: str) -> Trial:
    """Load a single file under the configurations of a folder, as diffusers reads its names, and run one step.

    Every weight of the file's components, as our tables take it apart, is the one that was loaded. Raises as
    `try_folder` does.
    """
    index = read_config(config / PIPELINE)
    checkpoint = open_checkpoint(file)
    (item,) = checkpoint.weights
    ours = unpack(checkpoint, architecture(architecture_id)).components
    absent = dict.fromkeys(name for name in OPTIONAL if is_component(name, index.get(name)))
    with quiet_libraries():
        cls = _single_file_class(str(index.get("_class_name")), file)
        with _refused("diffusers does not load the single file", file):
            dtype = _widest(item.part[key].dtype for key in item.keys)
            pipeline = cls.from_single_file(
                str(file), config=str(config), torch_dtype=dtype, local_files_only=True, **absent
            )
        tensors = {
            name: _compare(getattr(pipeline, name), name, file, held)
            for name, held in ours.items()
            if getattr(pipeline, name, None) is not None
        }
        pixels, why = run_step(pipeline, file)
    return Trial(type(pipeline).__name__, (None,), tensors, pixels, why)


def _single_file_class(class_name: str, file: Path) -> Any:
    import diffusers

    cls = getattr(diffusers, class_name, None)
    if not hasattr(cls, "from_single_file"):
        raise UnsupportedFile(f"diffusers loads no single file as {class_name}", path=file, hint="--no-check goes on")
    return cls


@contextmanager
def _refused(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # Whatever a third party raises here, the folder is not one that it takes.
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = "--no-check writes it all the same"
        raise UnsupportedFile(f"{what}: {first}", path=path, hint=hint) from error


def _dtypes(checkpoint: Checkpoint, variant: str | None) -> dict[str, torch.dtype]:
    """The dtype to load each component in: the one that holds all its floats."""
    import torch

    found = {
        component: _widest(item.part[key].dtype for item in items for key in item.keys)
        for component, items in files_of(checkpoint, variant).items()
    }
    return {**found, "default": torch.float32}


def _widest(dtypes: Iterable[str]) -> torch.dtype:
    """The narrowest dtype that models compute in and that holds every value of these."""
    import torch

    floats = {DTYPES[name].torch for name in dtypes if DTYPES[name].floating}
    halves = floats & {"float16", "bfloat16"}
    if floats & {"float32", "float64"} or len(halves) > 1 or not floats:
        return torch.float32
    return torch.float16 if halves == {"float16"} else torch.bfloat16


def _compared(pipeline: Any, checkpoint: Checkpoint, variant: str | None) -> dict[str, int]:
    """The number of tensors of each component, each of which is, value by value, that of the files."""
    counts: dict[str, int] = {}
    for component, items in files_of(checkpoint, variant).items():
        model = getattr(pipeline, component, None)
        if model is None:
            continue  # a folder beside the components, which the index does not name
        held = {key: item.part[key] for item in items for key in item.keys}
        counts[component] = _compare(model, component, items[0].name, held)
    return counts


def _compare(model: nn.Module, component: str, name: object, held: Mapping[str, LazyTensor]) -> int:
    """The number of tensors of a loaded model, each of which is one of the files'; raises InternalError otherwise."""
    import torch

    state = _state(model, held)
    seen = 0
    for key, tensor in held.items():
        live = next((spelt for spelt in _spellings(key) if spelt in state), None)
        if live is None:
            continue
        loaded = state.pop(live)
        stored = tensor.load().reshape(loaded.shape).to(loaded.dtype)
        if not torch.equal(stored, loaded) and not torch.allclose(stored, loaded, rtol=0, atol=0, equal_nan=True):
            raise InternalError("a weight is loaded as another one", path=name, key=key)
        seen += 1
    ties = set(getattr(model, "_tied_weights_keys", None) or ())
    lost = [key for key in state if key not in ties and companion(key) not in ("positions", "tied", "rotary")]
    if lost:
        raise UnsupportedFile(
            f"{len(lost)} weights of {component} are in no file, and would be drawn at random", path=name, key=lost[0]
        )
    return seen


def _state(model: nn.Module, held: Mapping[str, LazyTensor]) -> dict[str, torch.Tensor]:
    """The tensors of a loaded model under the names of its files: transformers renames those of some as it loads."""
    state = dict(model.state_dict())
    if not getattr(model, "_weight_conversions", None):
        return state
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(state))
    return max(state, saved, key=lambda names: len(names.keys() & held.keys()))


def _spellings(key: str) -> tuple[str, ...]:
    """A key as stored, without `text_model.`, and with it: transformers' versions differ."""
    return key, key.removeprefix(_ROOT), f"{_ROOT}{key}"


def run_step(pipeline: Any, folder: Path) -> tuple[tuple[int, int] | None, str | None]:
    """Run one step; the size of the picture, or why none was made. Raises UnsupportedFile, NonFinite."""
    import torch

    known = parameters_of(pipeline)
    try:
        prompt = asked(pipeline, PROMPT)
    except UnsupportedFile as problem:
        return None, problem.message
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    dtypes = {next(iter(model.parameters())).dtype for model in models}
    if len(dtypes) > 1:
        pipeline.to(dtype=torch.float32)
    for model in models:
        compute_wide(model)
    pipeline.set_progress_bar_config(disable=True)
    size = LATENTS * latent_pixels(pipeline)
    arguments: dict[str, Any] = {
        **prompt,
        **sized(known, size, size),
        "num_frames": 1,
        "num_inference_steps": _fewest(getattr(pipeline, "scheduler", None)),
        "output_type": "pt",
        "generator": torch.Generator("cpu").manual_seed(0),
    }
    if type(pipeline).__name__ not in NEEDS_NO_PICTURE:
        arguments |= _pictures(known, size)
    given = {name: value for name, value in arguments.items() if name in known}
    with _refused("diffusers does not run the pipeline", folder):
        result = pipeline(**given)
    made = next((result[name] for name in ("images", "frames") if name in result), None)
    if isinstance(made, torch.Tensor) and not made.isfinite().all():
        raise NonFinite("the trial step gives values that are no numbers", path=folder, hint="--no-check goes on")
    return (size, size), None


def _fewest(scheduler: Any) -> int:
    """The fewest steps that a scheduler can make."""
    config = getattr(scheduler, "config", {})
    return 2 if type(scheduler).__name__ in DIVIDES or config.get("shift_terminal") else 1


def _pictures(known: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Grey pictures for pipelines that start from one, and a mask that lets everything be painted."""
    import torch

    found: dict[str, Any] = {}
    if "image" in known:
        found["image"] = torch.full((1, 3, size, size), 0.5)
    if "mask_image" in known:
        found["mask_image"] = torch.ones(1, 1, size, size)
    return found
