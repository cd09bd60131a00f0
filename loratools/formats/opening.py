"""What a reference holds: a file, a PEFT folder, a folder of adapters, shards, a pipeline, or memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from loratools.errors import MalformedFile, PathNotFound, UnsafeFile, UsageError
from loratools.formats.configs import Config, number, parse_json
from loratools.tensors.gguf_check import ALPHA, MAGIC
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.source import LocalFile, MemoryTensors, TensorSource

CONFIG = "adapter_config.json"
PIPELINE = "model_index.json"
_MLX_WEIGHTS = "adapters.safetensors"
WEIGHTS = (
    "adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin", _MLX_WEIGHTS
)  # fmt: skip
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_NAMED = (".safetensors", *_PICKLES)  # whose names say what they are; an output has another while it is written
_COMPONENT_WEIGHTS = ("model", "diffusion_pytorch_model")
_CONFIG_LIMIT = 16 << 20

Reference = str | os.PathLike[str] | bytes | BinaryIO | Mapping[str, Any]


class Part(NamedTuple):
    """One set of tensors; `component` where its place in a folder names one, `config` where one stands beside it."""

    component: str | None
    source: TensorSource
    config: Config | None = None


class Opened(NamedTuple):
    """A reference, opened: nothing has been read but headers and configurations.

    `hub` names it on the Hub, at its commit, where it came from there.
    """

    name: str
    parts: tuple[Part, ...]
    layout: str = "file"
    hub: str | None = None

    @property
    def files(self) -> tuple[LocalFile, ...]:
        """Every local file behind it."""
        return tuple(file for part in self.parts for file in part.source.files)


def open_reference(reference: Reference, *, unsafe_pickle: bool = False) -> Opened:
    """Open a path, bytes, a binary file or a mapping of tensors; raises PathNotFound, MalformedFile or UnsafeFile."""
    if isinstance(reference, Mapping):
        return Opened("<memory>", (Part(None, MemoryTensors(reference)),), "memory")
    if isinstance(reference, bytes):
        return Opened("<memory>", (Part(None, open_safetensors(reference)),), "memory")
    if not isinstance(reference, str | os.PathLike):
        return Opened("<stream>", (Part(None, open_safetensors(reference)),), "memory")
    text = os.fspath(reference)
    path = Path(text)
    if not os.path.lexists(path):
        if text.startswith(("hf://", "http://", "https://")):
            raise UsageError("a path is needed here", path=text, hint=f"loratools pull {text} -o DIR")
        raise PathNotFound("no such file or folder", path=text)
    if path.is_dir():
        return _open_folder(path, unsafe_pickle=unsafe_pickle)
    return Opened(text, (_open_part(path, unsafe_pickle=unsafe_pickle),))


def _open_part(path: Path, component: str | None = None, *, unsafe_pickle: bool, config: Config | None = None) -> Part:
    if path.name.endswith(".safetensors.index.json"):
        from loratools.tensors.sharded import open_sharded  # seldom an adapter's

        return Part(component, open_sharded(path), config)
    if path.suffix.lower() == ".gguf" or (path.suffix not in _NAMED and _is_gguf(path)):
        return _open_gguf(path, component)
    if path.suffix.lower() in _PICKLES:
        from loratools.tensors.pickle_file import open_pickle  # its checks and its child cost more than most commands

        return Part(component, open_pickle(path, allowed=unsafe_pickle), config)
    return Part(component, open_safetensors(path), config)


def _is_gguf(path: Path) -> bool:
    with LocalFile(path) as file:
        return file.read(0, min(4, file.size)) == MAGIC


def _open_gguf(path: Path, component: str | None) -> Part:
    """A GGUF file, whose header has the alpha of all layers; 0 stands for none."""
    from loratools.tensors.gguf_file import GgufFile  # an optional library reads them

    source = GgufFile(path)
    alpha = source.metadata.get(ALPHA, "0")
    is_there = number(alpha, path=source.name, key=ALPHA) != 0
    return Part(component, source, {"lora_alpha": alpha} if is_there else None)


def read_config(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """A configuration file as plain JSON: no class in it is ever looked up, let alone imported. `infinite` as for
    `parse_json`.
    """
    with LocalFile(path) as file:
        if file.size > _CONFIG_LIMIT:
            raise MalformedFile(f"a configuration of {file.size} bytes", path=path, hint=f"at most {_CONFIG_LIMIT}")
        return parse_json(file.read(0, file.size), path=path, infinite=infinite)


def _weights(folder: Path) -> Path | None:
    """The weights of an adapter folder."""
    return next((folder / name for name in WEIGHTS if (folder / name).exists()), None)


def _open_adapter(folder: Path, component: str | None, *, unsafe_pickle: bool) -> Part:
    weights = _weights(folder)
    if weights is None:
        raise PathNotFound(f"{CONFIG} stands there without weights", path=folder, hint=f"expected {WEIGHTS[0]}")
    return _open_part(weights, component, unsafe_pickle=unsafe_pickle, config=read_config(folder / CONFIG))


def _open_folder(folder: Path, *, unsafe_pickle: bool) -> Opened:
    name = str(folder)
    if (folder / CONFIG).exists():
        part = _open_adapter(folder, None, unsafe_pickle=unsafe_pickle)
        return Opened(name, (part,), "mlx" if "lora_parameters" in (part.config or {}) else "peft")
    if (folder / PIPELINE).exists():
        return Opened(name, tuple(_pipeline_parts(folder, unsafe_pickle=unsafe_pickle)), "pipeline")
    nested = sorted(child for child in folder.iterdir() if (child / CONFIG).exists())
    if nested:
        return Opened(
            name, tuple(_open_adapter(child, child.name, unsafe_pickle=unsafe_pickle) for child in nested), "peft"
        )
    found = _model(folder)
    if found is None:
        weights = _weights(folder)
        found = [weights] if weights else sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        what = "no adapter, pipeline or safetensors file" if not found else f"{len(found)} safetensors files"
        raise PathNotFound(f"the folder holds {what}", path=folder, hint="name one file")
    return Opened(name, (_open_part(found[0], unsafe_pickle=unsafe_pickle),), "folder")


def _model(folder: Path) -> list[Path] | None:
    """The index or the single file of a model folder, or None where it holds neither."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        return indices
    single = [folder / f"{stem}.safetensors" for stem in _COMPONENT_WEIGHTS]
    return [path for path in single if path.exists()] or None


def _pipeline_parts(folder: Path, *, unsafe_pickle: bool) -> list[Part]:
    """The weights of every component of a diffusers pipeline that has any."""
    parts = []
    for name, entry in read_config(folder / PIPELINE).items():
        if not name or set(name) & set("/\\:\0") or name in (".", ".."):
            raise UnsafeFile(f"{PIPELINE} names the component {name!r}, which is no plain name", path=folder, key=name)
        if isinstance(entry, list) and (folder / name).is_dir():
            found = _model(folder / name) or sorted((folder / name).glob("*.safetensors"))[:1]
            if found:
                parts.append(_open_part(found[0], name, unsafe_pickle=unsafe_pickle))
    if not parts:
        raise PathNotFound("the pipeline holds no safetensors weights", path=folder)
    return parts
