"""A model with random weights written shard by shard, as diffusers writes large ones: memory is one shard's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loratools.pipelines.random_models import drawing, own_parameters

if TYPE_CHECKING:
    import torch
    from torch import nn

LIMIT = 10_000_000_000
"""Bytes of a shard, and of a model that is written in one file: as diffusers has it."""


class Held(NamedTuple):
    """A tensor of a model: where it lies, and the bytes that it takes in the file."""

    key: str
    module: nn.Module
    name: str
    nbytes: int


def write_shards(
    model: Any, folder: Path, *, seed: int, dtype: str, device: str, variant: str | None, limit: int = LIMIT
) -> list[Path]:
    """Draw the weights of a diffusers model on the meta device as `fill` does, and write them to `folder` with the
    configuration and the index; the files. The model stays without weights.
    """
    import torch
    from safetensors.torch import save_file

    values = drawing(model, seed=seed, dtype=dtype, device=device)
    width = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    shards = list(_dealt(model, width, limit))
    model.save_config(folder)
    word = f".{variant}" if variant else ""
    weight_map: dict[str, str] = {}
    files: list[Path] = []
    for number, held in enumerate(shards, 1):
        file = folder / f"diffusion_pytorch_model{word}-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {item.key: _value(item, values).to("cpu") for item in held}
        save_file(tensors, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
        files.append(file)
        del tensors
    total = sum(item.nbytes for held in shards for item in held)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / f"diffusion_pytorch_model.safetensors.index{word}.json").write_text(text, encoding="utf-8")
    return files


def _dealt(model: nn.Module, width: int, limit: int) -> Iterator[list[Held]]:
    """The tensors of a model in its order, in runs of at most `limit` bytes; one that is larger is alone."""
    shard: list[Held] = []
    for item in _held(model, width):
        if shard and sum(other.nbytes for other in shard) + item.nbytes > limit:
            yield shard
            shard = []
        shard.append(item)
    if shard:
        yield shard


def _held(model: nn.Module, width: int) -> Iterator[Held]:
    for key, module, name in own_parameters(model):
        yield Held(key, module, name, width * module._parameters[name].numel())  # type: ignore[union-attr]
    saved = model.state_dict().keys()
    for key, buffer in model.named_buffers():
        if key in saved:
            path, _, name = key.rpartition(".")
            yield Held(key, model.get_submodule(path), name, buffer.nbytes)


def _value(item: Held, values: Any) -> torch.Tensor:
    buffer = item.module._buffers.get(item.name)
    return values(item.module, item.name) if buffer is None else buffer.detach().clone()
