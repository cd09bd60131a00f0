"""The recipe of an output: inputs with SHA-256, operation, parameters and versions; no time, path or host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from loratools.errors import LoratoolsError
from loratools.formats.opening import read_config
from loratools.operations.outputs.provenance import PENDING
from loratools.tensors.source import LocalFile

RECIPE = "loratools-recipe.json"
SCHEMA = "loratools.recipe/1"
_LIBRARIES = ("diffusers", "safetensors", "torch", "transformers")


class Ingredient(NamedTuple):
    """One input of a recipe: its role (base, adapter, config, tokenizer), what it is called, its files by name.

    `scale` is for adapters.
    """

    role: str
    name: str
    files: tuple[tuple[str, LocalFile], ...]
    scale: float | None = None

    def to_dict(self, hashes: Mapping[LocalFile, str]) -> dict[str, Any]:
        """The JSON form."""
        scaled = {} if self.scale is None else {"scale": self.scale}
        files = [{"name": name, "sha256": hashes.get(file, PENDING)} for name, file in self.files]
        return {"role": self.role, "name": self.name, **scaled, "files": files}


def recipe(
    operation: str,
    ingredients: Sequence[Ingredient],
    parameters: Mapping[str, Any],
    hashes: Mapping[LocalFile, str],
) -> bytes:
    """The recipe as a JSON file; files without a hash get a place for one, so that the length is known before."""
    from loratools import __version__

    document = {
        "schema": SCHEMA,
        "operation": operation,
        "inputs": [item.to_dict(hashes) for item in ingredients],
        "parameters": {key: value for key, value in parameters.items() if value not in (None, False)},
        "versions": {"loratools": __version__, **{name: version(name) for name in _LIBRARIES}},
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def made_by(folder: Path, wanted: bytes) -> bool:
    """Whether the recipe in a folder is that one, made by this version of ours; other libraries may be of any."""
    try:
        found = read_config(folder / RECIPE)
    except LoratoolsError:  # nothing, or nothing of ours: whether it may be replaced is the writer's question
        return False
    return _essence(found) == _essence(json.loads(wanted))


def _essence(document: Mapping[str, Any]) -> dict[str, Any]:
    versions = document.get("versions")
    ours = versions.get("loratools") if isinstance(versions, dict) else None
    return {**document, "versions": ours}


def named_files(files: Sequence[LocalFile], root: Path | None) -> tuple[tuple[str, LocalFile], ...]:
    """Files with their names: relative to a folder they lie in, bare otherwise."""
    return tuple((_relative(file, root), file) for file in files)


def _relative(file: LocalFile, root: Path | None) -> str:
    place = Path(file.name)
    if root is not None and place.is_relative_to(root):
        return place.relative_to(root).as_posix()
    return place.name
