"""The configuration of a whole pipeline: its index, the configuration of every component, the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.bases.checkpoint import walk
from loratools.bases.pipeline_index import PIPELINE, components_of, has_weights
from loratools.errors import PathNotFound
from loratools.formats.opening import read_config
from loratools.pipelines.parts import Blueprint
from loratools.tensors.source import LocalFile

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
_MODEL_TYPES = {"T5EncoderModel": "t5"}
_TOKENIZERS = {"clip": "CLIPTokenizer", "t5": "T5TokenizerFast"}
_PLAIN = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Settings:
    """`configs` are those of models and the scheduler, by component; `files` every file but the index and the
    tokenizers, by relative name; `tokenizers` those that stand in the same folder. `folder` is None for built-in ones.
    """

    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes | LocalFile]
    tokenizers: Mapping[str, Mapping[str, LocalFile]]
    folder: Path | None = None

    @property
    def wanted_tokenizers(self) -> tuple[str, ...]:
        """The tokenizers that the pipeline has."""
        return tuple(name for name in components_of(self.index) if name.startswith("tokenizer"))


def settings_in(folder: Path) -> Settings:
    """The configuration of a pipeline folder; its weights are not looked at. Raises PathNotFound, MalformedFile."""
    if not (folder / PIPELINE).is_file():
        raise PathNotFound(f"the folder has no {PIPELINE}", path=folder, hint="give the folder of a diffusers pipeline")
    index = read_config(folder / PIPELINE)
    components = components_of(index)
    files: dict[str, bytes | LocalFile] = {}
    tokenizers: dict[str, dict[str, LocalFile]] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    for name, file in walk(folder):
        component, _, rest = name.partition("/")
        if component not in components or not name.endswith(_PLAIN) or name.endswith(".index.json"):
            continue
        if component.startswith("tokenizer"):
            tokenizers.setdefault(component, {})[rest] = file
            continue
        files[name] = file
        if rest in (CONFIG, SCHEDULER):
            configs[component] = read_config(Path(file.path), infinite=rest == SCHEDULER)
    for component in components:
        if has_weights(component) and component not in configs:
            raise PathNotFound(f"{component} has no {CONFIG}", path=folder / component)
    return Settings(index, configs, files, tokenizers, folder)


def settings_of(plan: Blueprint, changes: Mapping[str, Mapping[str, Any]], pipeline: str | None = None) -> Settings:
    """The configuration of a blueprint, with `changes` by component; `pipeline` is another class of pipeline."""
    from importlib.metadata import version

    index: dict[str, Any] = {"_class_name": pipeline or plan.pipeline, "_diffusers_version": version("diffusers")}
    configs: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes | LocalFile] = {}
    for part in plan.parts:
        index[part.name] = [part.library, part.class_name]
        configs[part.name] = {**part.config, **changes.get(part.name, {})}
        head: dict[str, Any] = {"_class_name": part.class_name, "_diffusers_version": version("diffusers")}
        if part.library == "transformers":
            head = {
                "architectures": [part.class_name],
                "model_type": _MODEL_TYPES.get(part.class_name, "clip_text_model"),
            }
        name = f"{part.name}/{CONFIG if part.is_model else SCHEDULER}"
        files[name] = as_json({**head, **configs[part.name]})
    index |= {name: ["transformers", _TOKENIZERS[entry.kind]] for name, entry in plan.tokenizers.items()}
    index |= {name: [None, None] for name in plan.absent} | dict(plan.options or {})
    return Settings(index, configs, files, {})


def as_json(document: Mapping[str, Any]) -> bytes:
    """A JSON file as diffusers writes its own: two spaces, sorted."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
