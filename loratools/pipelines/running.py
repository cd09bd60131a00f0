"""A pipeline from its folder, and one picture of it: the same prompt and seed give the same latents on any device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.errors import ResourceError, UnsupportedFile, UsageError
from loratools.pipelines.calls import SIGNED, Parameters, asked, guided, parameters_of, sized
from loratools.pipelines.schedulers import set_scheduler

if TYPE_CHECKING:
    import torch

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that a pipeline runs in, and torch's."""
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a pipeline runs: device, dtype (a safetensors name), parts moved to the device in turn."""

    device: str = "cpu"
    dtype: str = "F32"
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a picture, or a film of some `frames`, is drawn; None leaves a choice to the pipeline. `inputs` go to its
    call as they are.
    """

    steps: int = 8
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    frames: int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came out: the latents after the last step and the picture [3, height, width] in [0, 1], float32 on the CPU.

    `image` is None for a pipeline that makes none: a prior's embeddings are then the latents.
    """

    latents: torch.Tensor
    image: torch.Tensor | None


def load_pipeline(
    folder: Path,
    place: Place,
    scheduler: str | None = None,
    *,
    variant: str | None = None,
    unsafe_pickle: bool = False,
) -> Any:
    """The pipeline of a folder, in `place.dtype` on `place.device`, without a safety checker or a watermark.

    Raises ResourceError where the device is not there, UnsupportedFile for what diffusers cannot load.
    """
    import torch
    from diffusers import DiffusionPipeline

    require_device(place.device)
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=getattr(torch, DTYPES[place.dtype]),
            local_files_only=True,
            use_safetensors=None if unsafe_pickle else True,
            variant=variant,
        )
    except torch.OutOfMemoryError:
        raise
    except (ValueError, OSError, AttributeError, ImportError, TypeError, RuntimeError) as problem:
        raise UnsupportedFile(
            f"diffusers does not load the pipeline: {problem}", path=folder, hint="a folder with model_index.json"
        ) from problem
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it would blacken pictures of noise, and judges no route
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        set_scheduler(pipeline, scheduler)
    if place.offload:
        _offload(pipeline, place.device)
    elif place.device != "cpu":
        pipeline.to(place.device)
    return pipeline


def _offload(pipeline: Any, device: str) -> None:
    """Let every model wait on the CPU until it is its turn."""
    if device == "cpu":
        raise UsageError("nothing can be kept off the CPU by going to the CPU", hint="--device cuda --offload")
    try:
        pipeline.enable_model_cpu_offload(device=device)
    except ImportError as problem:
        raise UsageError("offloading needs accelerate", hint="pip install accelerate") from problem


def require_device(device: str) -> None:
    """Raise UsageError for an unknown device, ResourceError for one that this machine does not have."""
    import torch

    sort, colon, number = device.partition(":")
    if sort not in DEVICES or (colon and not number.isdecimal()):
        raise UsageError(f"unknown device {device!r}", hint=f"one of {', '.join(DEVICES)}, or cuda:1")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[sort]
    if int(number or 0) >= count:
        raise ResourceError(f"this machine has no {device} device", hint="--device cpu")


def draw(pipeline: Any, prompt: str, seed: int, how: Drawing) -> Drawn:
    """One picture. The noise is drawn on the CPU, so that every device begins with the same.

    Raises UsageError for an option that the pipeline does not know, UnsupportedFile for a pipeline without a prompt.
    """
    import torch

    known = parameters_of(pipeline)
    arguments = {**asked(pipeline, prompt), **_wanted(pipeline, known, how), **how.inputs}
    unknown = [name for name in how.inputs if name not in known]
    if unknown:
        raise UsageError(f"a {type(pipeline).__name__} takes no {unknown[0]!r}")
    last: list[torch.Tensor] = []

    def keep(_pipeline: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        last[:] = [given["latents"]]
        return given

    def keep_latents(_step: int, _time: Any, latents: torch.Tensor) -> None:
        last[:] = [latents]

    # The older of the two is called where there is no other.
    callbacks = {"callback_on_step_end": keep, "callback": keep_latents}
    callback = next((name for name in callbacks if name in known), None)
    if callback is not None:
        arguments[callback] = callbacks[callback]
    generator = torch.Generator("cpu").manual_seed(seed)
    result = pipeline(**arguments, output_type="pt" if callback else "latent", generator=generator)
    made = next((result[name] for name in ("images", "frames") if name in result), None)
    if callback is None or not last:
        latents = made if isinstance(made, torch.Tensor) else next(iter(result.values()))
        return Drawn(_plain(latents), None)
    return Drawn(_plain(last[0]), _picture(made, signed=type(pipeline).__name__ in SIGNED))


def _wanted(pipeline: Any, known: Parameters, how: Drawing) -> dict[str, Any]:
    """The arguments that the drawing states, under the names that pipelines give them."""
    counts = {"num_inference_steps": how.steps, "num_frames": how.frames}
    found = {name: value for name, value in counts.items() if value is not None}
    found |= guided(known, how.guidance) | sized(known, how.width, how.height)
    for name in found:
        if name not in known:
            raise UsageError(f"a {type(pipeline).__name__} takes no {name}", hint="leave the option away")
    return found


def _picture(made: Any, *, signed: bool) -> torch.Tensor | None:
    """The first picture (of a film the one in the middle) as float32 [3, height, width]; `signed` from [-1, 1]."""
    import torch

    if not isinstance(made, torch.Tensor):
        return None
    first = made[0]
    if first.ndim == 4:  # frames
        first = first[len(first) // 2]
    plain = first.detach().float().cpu()
    return (plain / 2 + 0.5 if signed else plain).clamp(0, 1)


def _plain(tensor: Any) -> torch.Tensor:
    import torch

    assert isinstance(tensor, torch.Tensor)
    return tensor.detach().to("cpu", torch.float32).clone()
