"""diffusers' own loader of adapters, and the change that PEFT's layers make to every module once it has loaded."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NOISE = ("is deprecated", "should be kept in float32")
"""What the libraries say about themselves, not about the file."""

MOST = 200
"""Characters of a message that are kept."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Adapter = str | Path | Mapping[str, Any]
"""A file, a folder, or tensors by key."""

WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True, slots=True)
class Refused:
    """The loader raised, or the file is of a sort that it does not take: why."""

    why: str


@dataclass(frozen=True, slots=True)
class Change:
    """What PEFT's layer around a module does to its weight and its bias, in float64."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def load_adapters(pipeline: Any, adapters: Sequence[tuple[Adapter, float]]) -> Refused | tuple[str, ...]:
    """Load adapters (files, folders or tensors by key, each at a scale) as users do; what the libraries complained of.

    Whatever the loader raises is its answer about the file: Refused.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        return Refused(f"a {type(pipeline).__name__} has no loader of adapters")
    names: list[str] = []
    with listening() as complaints:
        for at, (adapter, _) in enumerate(adapters):
            name = f"adapter_{at}"
            found = _given(adapter)
            if isinstance(found, Refused):
                return found
            given, options = found
            try:
                pipeline.load_lora_weights(given, adapter_name=name, **options)
            except Exception as problem:  # noqa: BLE001 - whatever it raises is the loader's answer
                return Refused(f"{type(problem).__name__}: {_line(problem)}")
            names.append(name)
        there = {name for found in pipeline.get_list_adapters().values() for name in found}
        active = [(name, scale) for name, (_, scale) in zip(names, adapters, strict=True) if name in there]
        if active:
            pipeline.set_adapters([name for name, _ in active], [scale for _, scale in active])
    return tuple(dict.fromkeys(complaints))


def _given(adapter: Adapter) -> Refused | tuple[Any, dict[str, Any]]:
    """What `load_lora_weights` is called with."""
    if isinstance(adapter, Mapping):
        return dict(adapter), {}
    path = Path(adapter)
    if not path.is_dir():
        return path.parent, {"weight_name": path.name}
    file = next((name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None:
        return Refused("a folder for each component: the loader takes one file")
    return path, {"weight_name": file}


def change_of(layer: Any) -> Change:
    """What a layer of PEFT does, by its own `merge` of a copy in float64; the layer stays as it is."""
    base = layer.get_base_layer()
    twin = copy.deepcopy(layer)
    twin = (twin.cpu() if base.weight.device.type == "mps" else twin).double()  # MPS has no float64
    twin.merge(adapter_names=[name for name in layer.active_adapters if name in _held(layer)])
    made = twin.get_base_layer()
    weight = made.weight.detach() - base.weight.detach().to(made.weight)
    if getattr(base, "bias", None) is None:
        return Change(weight, None)
    return Change(weight, made.bias.detach() - base.bias.detach().to(made.bias))


def _held(layer: Any) -> set[str]:
    """The adapters that this layer has factors of."""
    return {name for words in layer.adapter_layer_names for name in getattr(layer, words, {})}


class _Ear(logging.Handler):
    """Writes down what is logged as a warning, or worse."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Every warning of diffusers, peft and transformers, logged or raised, while the block runs."""
    heard: list[str] = []
    ear = _Ear(heard)
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    levels = [(logger, logger.level) for logger in loggers]
    quiet = [(handler, handler.level) for logger in loggers for handler in logger.handlers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.addHandler(ear)
    for handler, _ in quiet:
        handler.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
        heard.extend(str(item.message) for item in caught)
        heard[:] = [_line(text) for text in heard if not any(noise in text for noise in NOISE)]
    finally:
        for handler, level in quiet:
            handler.setLevel(level)
        for logger, level in levels:
            logger.removeHandler(ear)
            logger.setLevel(level)


def _line(problem: object) -> str:
    """A message as one line, without the colours and tables that libraries print."""
    line = " ".join(_COLOUR.sub("", str(problem)).split())
    return line if len(line) <= MOST else f"{line[: MOST - 1]}…"
