"""A rebuilt pipeline as files: merged weights, what goes along, card and recipe; a folder, a single file, or both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from loratools.architectures.architecture import Architecture
from loratools.bases.checkpoint import OTHER_WEIGHTS, PICKLES, Checkpoint, open_checkpoint
from loratools.bases.pipeline_index import PIPELINE
from loratools.errors import LoratoolsError, OutputRefused, UsageError
from loratools.hub.cards import CARD
from loratools.operations.merging.output import MergeOutput
from loratools.operations.outputs.files import Saved
from loratools.operations.outputs.provenance import PROVENANCE_KEY, InputHashes, record
from loratools.operations.rebuilding.card import Card
from loratools.operations.recipes.record import RECIPE, Ingredient, made_by, recipe
from loratools.operations.working.one_thread import one_thread
from loratools.pipelines.single_file import pack
from loratools.tensors.ahead import Ahead
from loratools.tensors.carried import LateBytes, Linked, needed_bytes, plain_size
from loratools.tensors.folder import Content, check_relative_name
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.output import check_free_space, guard_folder, guard_output
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.source import LocalFile, TensorSource
from loratools.tensors.writer import Progress, write

_WEIGHTS = (".safetensors", *PICKLES, *OTHER_WEIGHTS)


@dataclass(frozen=True)
class RebuildOutput:
    """The output of a rebuild. `extra` are the files that the base's own folder does not bring: configurations and
    tokenizers for a single file. `copy` makes no hard links. `forbidden` are folders that no output may lie in.
    """

    merged: MergeOutput
    table: Architecture | None
    ingredients: Sequence[Ingredient]
    card: Card
    parameters: Mapping[str, Any]
    extra: Mapping[str, bytes | LocalFile]
    copy: bool
    forbidden: tuple[Path, ...]
    metadata: Mapping[str, str]

    @property
    def inputs(self) -> tuple[LocalFile, ...]:
        """Every file that is read."""
        return (*self.merged.inputs, *(file for file in self.extra.values() if isinstance(file, LocalFile)))

    @cached_property
    def plain(self) -> dict[str, Content]:
        """Every file of the folder but card and recipe; the left-out ones are missing."""
        found: dict[str, Content] = {}
        for name, content in {**self.merged.contents(), **self.extra}.items():
            if not _is_stray(name):
                is_weights = name.lower().endswith(_WEIGHTS)
                links = isinstance(content, LocalFile) and is_weights and not self.copy
                found[name] = Linked(content) if links and isinstance(content, LocalFile) else content
        return {name: content for name, content in found.items() if name not in (CARD, RECIPE)}

    @property
    def left_out(self) -> tuple[str, ...]:
        """The files of the base that do not go along, and why."""
        names = [name for name in self.merged.contents() if _is_stray(name)]
        strays = [f"{name}: no file of a pipeline's folder" for name in names]
        return (*self.merged.left_out, *strays)

    def preview(self, out: Path | None, single: Path | None, *, overwrite: bool) -> int | None:
        """The bytes that are free for the outputs; raises what `save` would before it writes."""
        places = [place for place in (out, single) if place is not None]
        for place in places:
            if any(folder.is_dir() and place.resolve().is_relative_to(folder.resolve()) for folder in self.forbidden):
                raise OutputRefused("the output lies in the input", path=place, hint="give the output another name")
        if out is not None:
            self.merged.require_place(out)
            guard_folder(out, self.inputs, [*self.plain, CARD, RECIPE], overwrite=overwrite)
        if single is not None:
            if single.suffix != ".safetensors":
                raise UsageError(
                    "a single file is one .safetensors file", path=single, hint=f"name it {single.name}.safetensors"
                )
            if out is not None and single.resolve().is_relative_to(out.resolve()):
                raise OutputRefused("the single file lies in the folder", path=single, hint="name a place beside it")
            guard_output(single, self.inputs, overwrite=overwrite)
        if not places:
            return None
        for place, needed in self._needed(out, single):
            check_free_space(place, needed)
        room = os.statvfs(places[0].absolute().parent)
        return room.f_bavail * room.f_frsize

    def _needed(self, out: Path | None, single: Path | None) -> Iterator[tuple[Path, int]]:
        """A folder of each file system that is written to, and the bytes that the outputs take there together."""
        found: dict[int, tuple[Path, int]] = {}
        for place in (out, single):
            if place is not None:
                folder = place.absolute().parent
                device = folder.stat().st_dev
                size = self._folder_bytes(device) if place is out else _nbytes(self._packed())
                found[device] = folder, size + found.get(device, (folder, 0))[1]
        yield from found.values()

    def _folder_bytes(self, device: int) -> int:
        plain = self.plain.values()
        return sum(_nbytes(item[0]) if isinstance(item, tuple) else needed_bytes(item, device) for item in plain)

    def _packed(self) -> dict[str, LazyTensor]:
        """The tensors of a single file, made of base and adapters."""
        assert self.table is not None
        return pack(self.merged.checkpoint, self.table, self._merged_tensor)

    def sizes(self, what: str) -> tuple[tuple[str, int], ...]:
        """(name, bytes) of the files that are "linked", "copied" as they are, or "written"."""
        found: list[tuple[str, int]] = []
        for name, content in self.plain.items():
            if isinstance(content, tuple):
                kind, size = "written", _nbytes(content[0])
            else:
                kind = "linked" if isinstance(content, Linked) else "copied"
                kind, size = "written" if isinstance(content, bytes) else kind, plain_size(content)
            if kind == what:
                found.append((name, size))
        return tuple(found)

    def stands(self, out: Path | None, single: Path | None, hashes: InputHashes) -> bool:
        """Whether the outputs were made from these inputs, in this way, by this version."""
        found = self._hashes(hashes)
        if out is not None:
            whole = all((out / name).is_file() for name in self.plain)
            if not (whole and made_by(out, recipe("rebuild", self.ingredients, self.parameters, found))):
                return False
        if single is not None:
            try:
                told = open_safetensors(single).metadata.get(PROVENANCE_KEY)
            except LoratoolsError:  # nothing, or nothing of ours
                return False
            return told == record("rebuild", self.parameters, hashes.inputs())
        return True

    def save_folder(
        self,
        out: Path,
        hashes: InputHashes,
        *,
        overwrite: bool,
        threads: int,
        progress: Progress | None,
        prove: Callable[[Path], None] | None,
    ) -> Saved:
        """Write the folder; `prove` may refuse it before it gets its name."""
        late: dict[str, Callable[[Mapping[LocalFile, str]], bytes]] = {
            CARD: self.card.render,
            RECIPE: partial(recipe, "rebuild", self.ingredients, self.parameters),
        }
        contents: dict[str, Content] = {**self.plain}
        for name, make in late.items():
            contents[name] = LateBytes(len(make({})), partial(self._late, make, hashes))
        with one_thread(), Ahead(threads) as ahead:
            return self.merged.save_folder(
                out,
                hashes,
                ahead,
                overwrite=overwrite,
                progress=progress,
                contents=contents,
                prove=prove,
                inputs=self.inputs,
            )

    def save_single(
        self,
        single: Path,
        folder: Path | None,
        hashes: InputHashes,
        *,
        overwrite: bool,
        threads: int,
        progress: Progress | None,
        prove: Callable[[Path, Path], None] | None,
    ) -> Saved:
        """Write the single file, from the complete folder where there is one, else from base and adapters.

        `prove` is given the file, before it gets its name, and a folder with the configurations.
        """
        assert self.table is not None
        checkpoint = open_checkpoint(folder) if folder else self.merged.checkpoint
        tensors = pack(checkpoint, self.table) if folder else self._packed()

        def check(written: Path) -> None:
            if prove is not None:
                with tempfile.TemporaryDirectory(prefix="loratools-") as place:
                    named = Path(place) / single.name  # loaders judge a file by the end of its name
                    named.symlink_to(written.absolute())
                    prove(named, self._configurations(Path(place) / "config"))

        def late(payload_sha256: str) -> Mapping[str, str]:
            inputs = hashes.beside(payload_sha256)
            return {PROVENANCE_KEY: record("rebuild", self.parameters, inputs)}

        with one_thread(), Ahead(threads) as ahead:
            done = write(
                single,
                ahead.follow(tensors),
                self.metadata,
                inputs=(*self.inputs, *(checkpoint.files if folder else ())),
                overwrite=overwrite,
                progress=progress,
                check=check,
                late_metadata=late,
            )
        return Saved(done.path, done.size, done.payload_sha256)

    def _merged_tensor(self, source: TensorSource, key: str) -> LazyTensor:
        return self.merged.changed.get((id(source), key)) or source[key]

    def _configurations(self, place: Path) -> Path:
        """The files of the folder that are no weights, for a loader that needs them beside a single file."""
        for name, content in self.plain.items():
            if not isinstance(content, bytes | LocalFile) or name.lower().endswith(_WEIGHTS):
                continue
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bytes_of(content))
        return place

    def _late(self, make: Callable[[Mapping[LocalFile, str]], bytes], hashes: InputHashes) -> bytes:
        return make(self._hashes(hashes))

    def _hashes(self, hashes: InputHashes) -> dict[LocalFile, str]:
        inputs = hashes.inputs()
        return {file: item["sha256"] for file, item in zip(self.hashed, inputs, strict=True)}

    @property
    def hashed(self) -> tuple[LocalFile, ...]:
        """The inputs that the records name."""
        small = (file for item in self.ingredients for _, file in item.files)
        return tuple(dict.fromkeys((*self.merged.hashed, *small)))


def _is_stray(name: str) -> bool:
    """Whether a file of a base's folder has no place in a pipeline's: weights beside the components, unsafe names."""
    if "/" not in name and name.lower().endswith(_WEIGHTS):
        return True
    try:
        check_relative_name(name)
    except OutputRefused:
        return True
    return False


def index_of(checkpoint: Checkpoint, extra: Mapping[str, bytes | LocalFile]) -> bytes:
    """The `model_index.json` of a pipeline to be."""
    return bytes_of(extra.get(PIPELINE) or checkpoint.others[PIPELINE])


def bytes_of(content: bytes | LocalFile) -> bytes:
    """All of a small file."""
    return content if isinstance(content, bytes) else content.read(0, content.size)


def _nbytes(tensors: Mapping[str, LazyTensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
