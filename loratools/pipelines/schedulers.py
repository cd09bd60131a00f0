"""The samplers that people name, as diffusers' own classes: one row a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loratools.errors import UsageError, nearest


@dataclass(frozen=True, slots=True)
class Sampler:
    """A name as web UIs spell it, the scheduler class of diffusers and what its configuration says beside the model's.

    `flow` is whether it belongs to models trained by flow matching.
    """

    name: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    flow: bool = False


_KARRAS = {"use_karras_sigmas": True}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SAMPLERS = (
    Sampler("ddim", "DDIMScheduler"),
    Sampler("ddpm", "DDPMScheduler"),
    Sampler("deis", "DEISMultistepScheduler"),
    Sampler("dpm2", "KDPM2DiscreteScheduler"),
    Sampler("dpm2-a", "KDPM2AncestralDiscreteScheduler"),
    Sampler("dpm2-karras", "KDPM2DiscreteScheduler", _KARRAS),
    Sampler("dpmsolver++", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    Sampler("dpmsolver++-flow", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_FLOW}, flow=True),
    Sampler("dpmsolver++-karras", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_KARRAS}),
    Sampler("dpmsolver++-sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Sampler("dpmsolver++-sde-karras", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **_KARRAS}),
    Sampler("euler", "EulerDiscreteScheduler"),
    Sampler("euler-a", "EulerAncestralDiscreteScheduler"),
    Sampler("euler-flow", "FlowMatchEulerDiscreteScheduler", flow=True),
    Sampler("euler-karras", "EulerDiscreteScheduler", _KARRAS),
    Sampler("heun", "HeunDiscreteScheduler"),
    Sampler("heun-karras", "HeunDiscreteScheduler", _KARRAS),
    Sampler("lcm", "LCMScheduler"),
    Sampler("lms", "LMSDiscreteScheduler"),
    Sampler("lms-karras", "LMSDiscreteScheduler", _KARRAS),
    Sampler("pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    Sampler("unipc", "UniPCMultistepScheduler"),
    Sampler("unipc-flow", "UniPCMultistepScheduler", _FLOW, flow=True),
    Sampler("unipc-karras", "UniPCMultistepScheduler", _KARRAS),
)
"""Every sampler by name; the rest of its configuration is that of the pipeline's own scheduler."""


_OF_ITS_OWN = ("UnCLIPScheduler",)
"""Schedulers of models that predict what is wanted itself, not its noise."""


def sampler(name: str) -> Sampler:
    """The sampler of that name; raises UsageError with the nearest one."""
    known = {row.name: row for row in SAMPLERS}
    if name not in known:
        hint = nearest(name, known) or f"one of {', '.join(known)}"
        raise UsageError(f"unknown scheduler {name!r}", hint=hint)
    return known[name]


def set_scheduler(pipeline: Any, name: str) -> None:
    """Give a live pipeline the scheduler of that name; raises UsageError where it cannot serve the pipeline's model."""
    import diffusers

    row = sampler(name)
    current = getattr(pipeline, "scheduler", None)
    if current is None:
        raise UsageError(f"a {type(pipeline).__name__} has no scheduler", hint="leave --scheduler away")
    if type(current).__name__ in _OF_ITS_OWN:
        raise UsageError(f"no sampler replaces a {type(current).__name__}", hint="leave --scheduler away")
    flows = "Flow" in type(current).__name__ or bool(current.config.get("use_flow_sigmas"))
    if flows != row.flow:
        suitable = ", ".join(item.name for item in SAMPLERS if item.flow == flows)
        what = "flow matching" if flows else "diffusion"
        raise UsageError(f"{name} is not for a model trained by {what}", hint=f"one of {suitable}")
    pipeline.scheduler = getattr(diffusers, row.class_name).from_config(current.config, **row.options)
