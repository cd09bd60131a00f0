"""What diffusers' and peft's own loaders make of a file: the change of every weight, and every complaint."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.judges.fresh import fresh
from tests.judges.truth import Place, place

NOISE = ("is deprecated", "should be kept in float32")
"""What libraries say about themselves, not about the file."""


@dataclass(frozen=True)
class Loaded:
    """The float64 change of every weight and bias that changed at all, and the warnings given meanwhile."""

    deltas: dict[Place, torch.Tensor]
    biases: dict[Place, torch.Tensor]
    complaints: tuple[str, ...]


def deltas_after_diffusers_load(pipeline_folder: Path, file: Path) -> Loaded:
    """Load `file` with `load_lora_weights`, fuse it into every component in float64, and subtract the base."""
    pipeline = fresh(pipeline_folder)
    names = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
    before = {name: _parameters(getattr(pipeline, name)) for name in names}
    with listening() as complaints:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    # A component that the file does not speak of is reported as having no keys: that is so, and no complaint.
    silent = {type(getattr(pipeline, name)).__name__ for name in names if not _adapted(getattr(pipeline, name))}
    for name in names:
        getattr(pipeline, name).double()
    if any(_adapted(getattr(pipeline, name)) for name in names):
        pipeline.fuse_lora(components=names)
    after = {name: _parameters(getattr(pipeline, name)) for name in names}
    told = tuple(text for text in complaints if not any(f"No LoRA keys associated to {cls} " in text for cls in silent))
    return _changes(before, after, told)


def deltas_after_peft_load(component: str, model: nn.Module, folder: Path) -> Loaded:
    """Load a PEFT folder onto `model` with `PeftModel.from_pretrained`, merge in float64, and subtract the base."""
    from peft import PeftModel

    model = model.double()
    before = {component: _parameters(model)}
    with listening() as complaints:
        wrapped: Any = PeftModel.from_pretrained(model, str(folder))
    merged = wrapped.double().merge_and_unload()
    return _changes(before, {component: _parameters(merged)}, tuple(complaints))


def deltas_after_every_peft_load(pipeline_folder: Path, components: list[str], folder: Path) -> Loaded:
    """The same of every component, each from a folder in `folder`, or from `folder` itself where there is one."""
    pipeline = fresh(pipeline_folder)
    found = Loaded({}, {}, ())
    for name in components:
        place = folder if (folder / "adapter_config.json").exists() else folder / name
        made = deltas_after_peft_load(name, getattr(pipeline, name), place)
        found = Loaded(found.deltas | made.deltas, found.biases | made.biases, (*found.complaints, *made.complaints))
    return found


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Every warning of diffusers, peft and transformers, logged or raised, while the block runs."""
    heard: list[str] = []
    ear = logging.Handler(logging.WARNING)
    ear.emit = lambda record: heard.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    for logger in loggers:
        logger.addHandler(ear)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
        heard.extend(str(item.message) for item in caught)
        heard[:] = [text for text in heard if not any(noise in text for noise in NOISE)]
    finally:
        for logger in loggers:
            logger.removeHandler(ear)


def _adapted(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            found[name.replace(".base_layer.", ".")] = tensor.detach().double().clone()
    return found


def _changes(
    before: dict[str, dict[str, torch.Tensor]], after: dict[str, dict[str, torch.Tensor]], complaints: tuple[str, ...]
) -> Loaded:
    deltas: dict[Place, torch.Tensor] = {}
    biases: dict[Place, torch.Tensor] = {}
    for component, old in before.items():
        new = after[component]
        assert old.keys() == new.keys()
        for name, tensor in old.items():
            path, _, leaf = name.rpartition(".")
            if not torch.equal(tensor, new[name]):
                {"weight": deltas, "bias": biases}[leaf][place(component, path)] = new[name] - tensor
    return Loaded(deltas, biases, complaints)
