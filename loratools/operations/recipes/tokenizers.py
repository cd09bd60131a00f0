"""The tokenizers that a rebuilt pipeline took from beside its base, found again by their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loratools.errors import ArchitectureMismatch, PathNotFound
from loratools.operations.rebuilding.tokenizers import cached_folders
from loratools.tensors.checksums import sha256_of

if TYPE_CHECKING:
    from loratools.operations.recipes.model import RecipeFile, RecipeInput


def found_tokenizers(item: RecipeInput, folders: Sequence[Path], pipelines: Iterable[Path]) -> list[str]:
    """`NAME=DIR` for each tokenizer of a recipe, as `rebuild` takes them.

    Each is looked for in the folders, under the input's name in them, in the pipelines whose configurations were taken,
    and in the Hub's cache. Raises PathNotFound where one is not there, ArchitectureMismatch where all have other bytes.
    """
    wanted: dict[str, list[tuple[str, RecipeFile]]] = {}
    for file in item.files:
        name, _, rest = file.name.partition("/")
        wanted.setdefault(name, []).append((rest, file))
    return [f"{name}={_folder(name, files, [*folders, *pipelines], item.name)}" for name, files in wanted.items()]


def _folder(name: str, files: Sequence[tuple[str, RecipeFile]], folders: Sequence[Path], called: str) -> Path:
    other: tuple[Path, RecipeFile] | None = None
    for folder in _candidates(name, folders, called):
        if not all((folder / rest).is_file() for rest, _ in files):
            continue
        differing = next((file for rest, file in files if sha256_of(folder / rest) != file.sha256), None)
        if differing is None:
            return folder
        other = other or (folder, differing)
    if other is not None:
        folder, file = other
        raise ArchitectureMismatch(
            f"the tokenizer is another one than the recipe's: {file.name}",
            path=folder,
            hint="take its files out of the recipe to use it all the same",
            expected=file.sha256,
        )
    looked = ", ".join(str(folder) or "." for folder in folders)
    raise PathNotFound(
        f"the {name} is not there",
        path=name,
        hint=f"looked for {name}/ in {looked}, and in the Hub's cache; --inputs names more folders",
    )


def _candidates(name: str, folders: Sequence[Path], called: str) -> Iterator[Path]:
    for folder in folders:
        yield folder / name
        yield folder / called / name
        yield folder / called
        yield folder
    yield from cached_folders(name)
