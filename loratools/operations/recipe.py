"""recipe: how an output was made, as a document; and the same output made again from it, byte for byte."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.errors import (
    ArchitectureMismatch,
    LoratoolsError,
    MalformedFile,
    NotRepresentable,
    OutputRefused,
    PathNotFound,
    UsageError,
)
from loratools.formats.configs import parse_json
from loratools.formats.opening import open_reference, read_config
from loratools.operations.extraction.wishes import FULL
from loratools.operations.outputs.provenance import PROVENANCE_KEY
from loratools.operations.recipes.record import RECIPE
from loratools.tensors.checksums import sha256_of
from loratools.tensors.source import LocalFile

if TYPE_CHECKING:
    from loratools.operations.recipes.model import Recipe, RecipeInput
    from loratools.tensors.writer import Progress

_LIMIT = 16 << 20
# What the record of an operation says that the inputs of a recipe say.
_OF_INPUTS = {"combine": ("weights",), "merge": ("scales",), "rebuild": ("scales", "config")}


@dataclass(frozen=True, slots=True)
class Remade:
    """An output made from a recipe: whether it has the bytes that the recipe states, None where it states none."""

    path: Path
    operation: str
    same_bytes: bool | None
    differing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.recipe-run/1",
            "path": str(self.path),
            "operation": self.operation,
            "same_bytes": self.same_bytes,
            "differing": list(self.differing),
        }


def recipe_of(output: str | os.PathLike[str]) -> Recipe:
    """The recipe that an output's own record tells: of a file, a PEFT folder or a rebuilt pipeline.

    Raises NotRepresentable where there is no record, or it does not tell which file was which input.
    """
    from loratools.operations.recipes.model import checked

    place = Path(output)
    if (place / RECIPE).is_file():
        document = read_config(place / RECIPE)
        parameters = _parameters(str(document.get("operation")), document.get("parameters", {}))
        return checked({**document, "parameters": parameters, "output": _described(place)}, place / RECIPE)
    part = open_reference(place).parts[0]
    raw = part.source.metadata.get(PROVENANCE_KEY)
    if raw is None:
        raise NotRepresentable(
            "no record tells how this was made", path=place, hint="loratools writes one into every output"
        )
    record = parse_json(raw, path=place, key=PROVENANCE_KEY)
    operation = str(record.get("operation"))
    document = {
        "schema": "loratools.recipe/1",
        "operation": operation,
        "inputs": _inputs(operation, record, place),
        "parameters": _parameters(operation, record.get("parameters", {})),
        "versions": {"loratools": record.get("version", "")},
        "output": _described(place),
    }
    return checked(document, place)


def _inputs(operation: str, record: Mapping[str, Any], place: Path) -> list[dict[str, Any]]:
    """The inputs by role: the files of a folder are told as one input, every other file is one."""
    from loratools.operations.recipes.model import ROLES

    if operation not in ROLES:
        raise NotRepresentable(f"{operation} has no recipe", path=place, key=PROVENANCE_KEY)
    files, said = record["inputs"], record.get("parameters", {})
    once, several = ROLES[operation]
    scales = said.get("weights" if operation == "combine" else "scales", []) if several else []
    roles = [*once, *([several] * len(scales) if several else [])]
    groups = [list(group) for _, group in groupby(files, key=_Groups())]
    if len(groups) != len(roles):
        raise NotRepresentable(
            f"the record lists {len(files)} files of {len(roles)} inputs, and not which is whose",
            path=place,
            hint="write the recipe by hand: loratools recipe --help",
        )
    given: list[float | None] = [*([None] * len(once)), *scales]
    return [
        {
            "role": role,
            "name": group[0].get("folder", group[0]["name"]),
            **({} if scale is None else {"scale": scale}),
            "files": [{"name": file["name"], "sha256": file["sha256"]} for file in group],
        }
        for role, group, scale in zip(roles, groups, given, strict=True)
    ]


class _Groups:
    """Which input a file of a record belongs to: the one that is said, or one of its own."""

    def __init__(self) -> None:
        self._alone = 0

    def __call__(self, file: Mapping[str, Any]) -> int:
        said = file.get("input")
        if said is not None:
            return int(said)
        self._alone -= 1
        return self._alone


def _parameters(operation: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters under the verb's own names."""
    found = {name: value for name, value in said.items() if name not in _OF_INPUTS.get(operation, ())}
    if "pattern" in found:
        pairs = [text.rpartition("=") for text in found.pop("pattern")]
        found["patterns"] = [[pattern, int(rank)] for pattern, _, rank in pairs]
    if operation == "extract" and "full" in found:
        found["full"] = [word for word, sort in FULL.items() if sort in found["full"]]
    return found


def _described(place: Path) -> dict[str, Any]:
    """An output's name and files, without the recipe that is among them."""
    if not place.is_dir():
        return {"name": place.name, "files": [{"name": place.name, "sha256": sha256_of(place)}]}
    files = sorted(item for item in place.rglob("*") if item.is_file() and item.name != RECIPE)
    named = [{"name": item.relative_to(place).as_posix(), "sha256": sha256_of(item)} for item in files]
    return {"name": place.name, "files": named}


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """A recipe from a .yaml or .json file; raises MalformedFile with the field, and UsageError for wrong parameters."""
    from loratools.operations.recipes.model import checked

    place = Path(path)
    if place.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise UsageError("a recipe is a .yaml or .json file", path=place)
    with LocalFile(place) as file:
        if file.size > _LIMIT:
            raise MalformedFile(f"a recipe of {file.size} bytes", path=place)
        data = file.read(0, file.size)
    if place.suffix.lower() == ".json":
        return checked(parse_json(data, path=place), place)
    import yaml

    try:
        return checked(yaml.safe_load(data), place)
    except yaml.YAMLError as error:
        raise MalformedFile(f"not YAML: {error}", path=place) from error


def written_recipe(recipe: Recipe) -> str:
    """The recipe as YAML."""
    import yaml

    return str(yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))


def run_recipe(
    recipe: str | os.PathLike[str] | Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    folders: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> Remade:
    """Make a recipe's output at `out` (else under its own name beside the recipe) from inputs that have its hashes.

    Inputs are looked for in `folders`, and beside the recipe. Raises PathNotFound for one that is not there,
    ArchitectureMismatch for one with another hash, OutputRefused where the recipe, which may be a stranger's, names a
    place elsewhere than beside itself, and what the operation raises.
    """
    from loratools.operations.recipes.model import Recipe, verb_of

    home = Path() if isinstance(recipe, Recipe) else Path(recipe).parent
    found = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    target = Path(out) if out is not None else _stated(found, home)
    places = {id(item): _place(item, [*map(Path, folders), home]) for item in found.inputs if item.role != "tokenizer"}
    once = [places[id(item)] for item in found.inputs if item.role in ("input", "base", "tuned")]
    adapters = [
        (str(places[id(item)]), 1.0 if item.scale is None else item.scale)
        for item in found.inputs
        if item.role == "adapter"
    ]
    how = dict(found.parameters)
    verb = verb_of(found.operation)
    if "threads" in inspect.signature(verb).parameters:
        how["threads"] = threads
    config = next((places[id(item)] for item in found.inputs if item.role == "config"), None)
    if found.operation in ("merge", "rebuild"):
        if config is not None:
            how["config"] = config
        tokenizers = _tokenizers(found, [*map(Path, folders), home], config)
        if tokenizers:
            how["tokenizer"] = tokenizers
        verb(once[0], adapters, target, overwrite=overwrite, progress=progress, **how)
    else:
        pending = verb(adapters, **how) if found.operation == "combine" else verb(*once, **how)
        pending.save(target, overwrite=overwrite, progress=progress)
    return _compared(found, target)


def _stated(recipe: Recipe, home: Path) -> Path:
    """The place that a recipe names for its output."""
    if recipe.output is None:
        raise UsageError("the recipe names no output", hint="-o OUT")
    named = Path(recipe.output.name)
    if named.is_absolute() or ".." in named.parts:
        raise OutputRefused("the recipe's output is not beside it", path=named, key="output.name", hint="-o OUT")
    return home / named


def _tokenizers(recipe: Recipe, folders: Sequence[Path], config: Path | None) -> list[str]:
    """What `rebuild` is told of tokenizers: folders found by their hashes, or by name where the recipe states none."""
    from loratools.operations.recipes.tokenizers import found_tokenizers

    found: list[str] = []
    for item in recipe.inputs:
        if item.role == "tokenizer":
            pipelines = [] if config is None else [config]
            found += found_tokenizers(item, folders, pipelines) if item.files else [str(_place(item, folders))]
    return found


def _place(item: RecipeInput, folders: Sequence[Path]) -> Path:
    """Where an input is: of several of its name the first that has its hashes."""
    places = [folder / item.name for folder in folders if (folder / item.name).exists()]
    if not places:
        looked = ", ".join(str(folder) or "." for folder in folders)
        raise PathNotFound(f"the {item.role} {item.name} is not there", path=item.name, hint=f"looked in {looked}")
    differing: list[LoratoolsError] = []
    for place in places:
        error = _differing(item, place)
        if error is None:
            return place
        differing.append(error)
    raise differing[0]


def _differing(item: RecipeInput, place: Path) -> LoratoolsError | None:
    """What keeps a place from being an input: a file that it lacks, or one with another hash."""
    for file in item.files:
        path = place / file.name if place.is_dir() else place
        if not path.is_file():
            return PathNotFound(f"the {item.role} lacks {file.name}", path=path)
        if (sha256 := sha256_of(path)) != file.sha256:
            return ArchitectureMismatch(
                f"the {item.role} is another file than the recipe's",
                path=path,
                hint="take sha256 out of the recipe to use it all the same",
                expected=file.sha256,
                found=sha256,
            )
    return None


def _compared(recipe: Recipe, target: Path) -> Remade:
    if recipe.output is None or not recipe.output.files:
        return Remade(target, recipe.operation, None, ())
    made = {file["name"]: file["sha256"] for file in _described(target)["files"]}
    if not target.is_dir():
        made = {recipe.output.files[0].name: made[target.name]}
    wanted = {file.name: file.sha256 for file in recipe.output.files}
    differing = tuple(sorted(name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name)))
    return Remade(target, recipe.operation, not differing, differing)
