"""What a recipe says: inputs with their hashes, an operation with its parameters, and the output that came of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loratools.errors import MalformedFile, UsageError, nearest

Role = Literal["input", "base", "tuned", "adapter", "config", "tokenizer"]
Operation = Literal["combine", "convert", "extract", "merge", "rebuild", "resize"]
# operation → the roles that stand in the order of the verb's arguments, and the one that may stand several times
ROLES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "combine": ((), "adapter"),
    "convert": (("input",), None),
    "extract": (("base", "tuned"), None),
    "merge": (("base",), "adapter"),
    "rebuild": (("base",), "adapter"),
    "resize": (("input",), None),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeFile(_Strict):
    """A file by its name (within its folder, for one of several) and the SHA-256 that it must have."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class RecipeInput(_Strict):
    """One input: its role, the name of its file or folder, its scale or weight, and its files."""

    role: Role
    name: str
    scale: float | None = None
    files: tuple[RecipeFile, ...] = ()


class Recipe(_Strict):
    """A whole recipe. `versions` are those that made `output`; another version may make other bytes."""

    schema_: Literal["loratools.recipe/1"] = Field(default="loratools.recipe/1", alias="schema")
    operation: Operation
    inputs: tuple[RecipeInput, ...]
    parameters: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    output: RecipeInput | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document, without what is not said."""
        found = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        output = found.get("output")
        if output is not None:
            del output["role"]
        return found


def checked(document: Any, path: Path) -> Recipe:
    """The recipe in a document; MalformedFile naming the field, UsageError for a parameter of no use."""
    if not isinstance(document, dict):
        raise MalformedFile("a recipe is a mapping", path=path)
    if isinstance(document.get("output"), dict):
        document = {**document, "output": {"role": "input", **document["output"]}}
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        fields = [item.alias or name for name, item in Recipe.model_fields.items()]
        hint = nearest(str(first["loc"][-1]), fields) if first["type"] == "extra_forbidden" else None
        message = "unknown" if first["type"] == "extra_forbidden" else str(first["msg"])
        raise MalformedFile(f"this is no recipe: {place}: {message}", path=path, key=place, hint=hint) from error
    _check_roles(recipe, path)
    known = parameters_of(recipe.operation)
    for name in recipe.parameters:
        if name not in known:
            raise UsageError(
                f"{recipe.operation} has no parameter {name!r}", path=path, key=name, hint=nearest(name, known)
            )
    return recipe


def _check_roles(recipe: Recipe, path: Path) -> None:
    once, several = ROLES[recipe.operation]
    roles: list[str] = [item.role for item in recipe.inputs]
    for role in once:
        if roles.count(role) != 1:
            raise MalformedFile(f"{recipe.operation} needs one input with the role {role}", path=path, key="inputs")
    helping = ("config", "tokenizer") if recipe.operation == "rebuild" else ()
    strange = [role for role in roles if role not in (*once, several, *helping)]
    if strange:
        raise MalformedFile(f"{recipe.operation} has no input with the role {strange[0]}", path=path, key="inputs")


def verb_of(operation: str) -> Callable[..., Any]:
    """The function of an operation."""
    found: Callable[..., Any] = getattr(import_module(f"loratools.operations.{operation}"), operation)
    return found


def parameters_of(operation: str) -> list[str]:
    """The keywords that an operation's output depends on."""
    names = set(inspect.signature(verb_of(operation)).parameters)
    if operation in ("merge", "rebuild"):
        planner = getattr(import_module(f"loratools.operations.{operation}"), f"plan_{operation}")
        names |= set(inspect.signature(planner).parameters)
    if operation == "rebuild":
        from loratools.operations.merge import plan_merge

        names |= set(inspect.signature(plan_merge).parameters)
    beside = {
        "base", "tuned", "adapters", "reference", "loras", "out", "overwrite", "if_needed", "progress", "threads",
        "how", "single_file", "check", "bare", "config", "tokenizer",
    }  # fmt: skip
    return sorted(names - beside)
