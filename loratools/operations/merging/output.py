"""A merged base as files: changed tensors among the base's own bytes, in its own layout, recorded and verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from loratools.bases.checkpoint import Checkpoint, WeightsFile
from loratools.errors import InternalError, LoratoolsError, OutputRefused, UsageError
from loratools.operations.header.hashes import HASH_KEYS
from loratools.operations.outputs.files import Saved, late_metadata
from loratools.operations.outputs.provenance import PROVENANCE_KEY, InputHashes, record
from loratools.operations.working.one_thread import one_thread
from loratools.tensors.ahead import Ahead
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.output import check_free_space, guard_folder, guard_output
from loratools.tensors.resharding import index_of, reshard
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import Content, Progress, write, write_folder

Tensors = dict[str, LazyTensor]
Place = tuple[int, str]


@dataclass(frozen=True)
class MergeOutput:
    """The output of a merge: `changed` are the tensors by their place in the base; everything else is copied, but for
    the `dropped` ones: scales that no weight is multiplied by any more. `adapter_folders` are inputs, too.
    """

    checkpoint: Checkpoint
    changed: Mapping[Place, LazyTensor]
    parameters: Mapping[str, Any]
    adapter_files: tuple[LocalFile, ...]
    dtype: str | None
    max_shard_size: int | None
    dropped: frozenset[Place] = frozenset()
    adapter_folders: tuple[Path, ...] = ()
    operation: str = "merge"

    @property
    def folder(self) -> bool:
        """Whether the output is a folder."""
        return self.checkpoint.folder or self.max_shard_size is not None

    @property
    def inputs(self) -> tuple[LocalFile, ...]:
        """Every file that is read."""
        return (*self.checkpoint.files, *self.adapter_files)

    @cached_property
    def _touched(self) -> frozenset[str]:
        """The folders whose weights become others."""
        sources = {source for source, _ in self.changed}
        return frozenset(item.folder for item in self.checkpoint.weights if id(item.part) in sources)

    @cached_property
    def _beside(self) -> tuple[Mapping[str, LocalFile], tuple[str, ...]]:
        return self.checkpoint.beside(self._touched)

    @property
    def beside(self) -> Mapping[str, LocalFile]:
        """The files that go along unchanged."""
        return self._beside[0]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The files of the base that do not go along."""
        return tuple(f"{name}: the weights in another form, unmerged" for name in self._beside[1])

    @cached_property
    def files(self) -> dict[str, tuple[WeightsFile, Tensors]]:
        """The files of tensors that are written, by relative name; those that nothing changes are copied whole."""
        found: dict[str, tuple[WeightsFile, Tensors]] = {}
        for item in self.checkpoint.weights:
            held = {
                key: self.changed.get((id(item.part), key), item.part[key])
                for key in item.keys
                if (id(item.part), key) not in self.dropped
            }
            found[item.name] = item, held
        if self.max_shard_size is None:
            return found
        return self._resharded(found, self.max_shard_size)

    def _resharded(
        self, files: Mapping[str, tuple[WeightsFile, Tensors]], most: int
    ) -> dict[str, tuple[WeightsFile, Tensors]]:
        groups: dict[int, list[tuple[WeightsFile, Tensors]]] = {}
        for item, held in files.values():
            groups.setdefault(id(item.part), []).append((item, held))
        found: dict[str, tuple[WeightsFile, Tensors]] = {}
        for group in groups.values():
            first = group[0][0]
            whole = {key: tensor for _, held in group for key, tensor in held.items()}
            stem = _stem(first) if self.checkpoint.folder else "model"
            prefix = f"{first.folder}/" if first.folder else ""
            for name, cut in reshard(stem, whole, most).items():
                found[prefix + name] = first, dict(cut)
        return found

    def sizes(self) -> tuple[tuple[str, int, int], ...]:
        """(name, tensors, bytes of data) of every file of tensors."""
        return tuple(
            (name, len(held), sum(tensor.nbytes for tensor in held.values())) for name, (_, held) in self.files.items()
        )

    def preview(self, out: Path, *, overwrite: bool) -> int:
        """The bytes that are free for the output; raises what `save` would before it writes."""
        self.require_place(out)
        if self.folder:
            guard_folder(out, self.inputs, self.contents(), overwrite=overwrite)
        else:
            guard_output(out, self.inputs, overwrite=overwrite)
        check_free_space(out.absolute().parent, sum(size for _, _, size in self.sizes()))
        room = os.statvfs(out.absolute().parent)
        return room.f_bavail * room.f_frsize

    def save(self, out: Path, *, overwrite: bool, if_needed: bool, threads: int, progress: Progress | None) -> Saved:
        """Write, verify, and compare every byte that was only copied with its source."""
        self.require_place(out)
        hashes = InputHashes(self.hashed, self.folders)
        try:
            if if_needed and self._made(out, record(self.operation, self.parameters, hashes.inputs())):
                return Saved(out, 0, None, skipped=True)
            with one_thread(), Ahead(threads) as ahead:
                if self.folder:
                    return self.save_folder(out, hashes, ahead, overwrite=overwrite, progress=progress)
                return self._save_file(out, hashes, ahead, overwrite=overwrite, progress=progress)
        finally:
            hashes.close()

    def _save_file(
        self, out: Path, hashes: InputHashes, ahead: Ahead, *, overwrite: bool, progress: Progress | None
    ) -> Saved:
        ((item, held),) = self.files.values()
        done = write(
            out,
            ahead.follow(held),
            item.metadata,
            inputs=self.inputs,
            overwrite=overwrite,
            keep_order=True,
            progress=progress,
            check=lambda written: self._check_file(written, item, held),
            late_metadata=self._late(item, held, hashes),
            digest=_is_hashed(item),
        )
        return Saved(done.path, done.size, done.payload_sha256)

    def save_folder(
        self,
        out: Path,
        hashes: InputHashes,
        ahead: Ahead,
        *,
        overwrite: bool,
        progress: Progress | None,
        contents: Mapping[str, Content] | None = None,
        prove: Callable[[Path], None] | None = None,
        inputs: tuple[LocalFile, ...] | None = None,
    ) -> Saved:
        """Write a folder of `contents` (those of this merge where none are given), whose inputs are hashed by `hashes`.

        `prove` is given the complete folder before it gets its name, and may refuse it; `inputs` are those that the
        folder may not hold and that must stay as they are.
        """
        contents = self.contents() if contents is None else contents
        rewritten = {name: pair for name, pair in self.files.items() if isinstance(contents[name], tuple)}
        followed = {name: (ahead.follow(held), item.metadata) for name, (item, held) in rewritten.items()}

        def check(written: Path) -> None:
            for name, (item, held) in rewritten.items():
                self._check_file(written / name, item, held)
            if prove is not None:
                prove(written)

        done = write_folder(
            out,
            {**contents, **followed},
            inputs=self.inputs if inputs is None else inputs,
            overwrite=overwrite,
            progress=progress,
            check=check,
            late_metadata={name: self._late(item, held, hashes) for name, (item, held) in rewritten.items()},
            digest=any(_is_hashed(item) for item, _ in rewritten.values()),
            keep_order=True,
        )
        return Saved(done.path, done.size, None)

    def contents(self) -> dict[str, Content]:
        """Every file of an output folder: tensors, or a file to copy whole; indices last."""
        contents: dict[str, Content] = {**self.beside, **self.checkpoint.rewritten}
        indices: dict[str, dict[str, Tensors]] = {}
        for name, (item, held) in self.files.items():
            is_copied = self.max_shard_size is None and item.file is not None and not self._changes(item)
            contents[name] = item.file if is_copied and item.file is not None else (held, item.metadata)
            index = self._index(name, item)
            if index is not None:
                indices.setdefault(index, {})[PurePosixPath(name).name] = held
        for index, files in indices.items():
            if self.max_shard_size is not None or self.dtype is not None or self.checkpoint.rewritten:
                contents.pop(index, None)
                contents[index] = index_of(files)
        if self.max_shard_size is not None:
            for item in self.checkpoint.weights:
                if item.index and item.index not in indices:
                    contents.pop(item.index, None)  # its shards have become one file
        return contents

    def _index(self, name: str, item: WeightsFile) -> str | None:
        """The index that lists a file of the output, or None where it stands alone."""
        if self.max_shard_size is None:
            return item.index
        if "-of-" not in PurePosixPath(name).name:
            return None
        prefix = f"{item.folder}/" if item.folder else ""
        stem = _stem(item) if self.checkpoint.folder else "model"
        return item.index or f"{prefix}{stem}.safetensors.index.json"

    def _changes(self, item: WeightsFile) -> bool:
        return any((id(item.part), key) in self.changed for key in item.keys)

    @property
    def hashed(self) -> tuple[LocalFile, ...]:
        """The inputs that the record names: weights and adapters."""
        return (*self.base_files, *self.adapter_files)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The inputs that are folders."""
        base = Path(self.checkpoint.name)
        return (*([base] if base.is_dir() else []), *self.adapter_folders)

    @property
    def base_files(self) -> tuple[LocalFile, ...]:
        """The files that the base's weights lie in."""
        parts = {id(item.part): item.part for item in self.checkpoint.weights}
        return tuple(dict.fromkeys(file for part in parts.values() for file in part.files))

    def _late(self, item: WeightsFile, held: Tensors, hashes: InputHashes) -> Callable[[str], Mapping[str, str]]:
        return late_metadata(self.operation, self.parameters, item.metadata, held, hashes)

    def _check_file(self, written: Path, item: WeightsFile, held: Tensors) -> None:
        """Open a file as a stranger would: its order, dtypes and shapes, and the bytes of all that was only copied."""
        found = open_safetensors(written)
        if list(found.keys()) != list(held):
            raise InternalError("the written tensors are not those planned, in their order", path=written)
        for key, tensor in held.items():
            made = found[key]
            if (made.dtype, made.shape) != (tensor.dtype, tensor.shape):
                raise InternalError("a written tensor has another dtype or shape", path=written, key=key)
            if (id(item.part), key) not in self.changed and not made.same_bytes(tensor):
                raise InternalError("a copied tensor differs from the base model's", path=written, key=key)

    def _made(self, out: Path, wanted: str) -> bool:
        """Whether the output's own records say that it was made by this version from these inputs and parameters."""
        names = [
            name
            for name, (item, _) in self.files.items()
            if not self.folder or item.file is None or self._changes(item)
        ]
        try:
            places = [out / name for name in names] if self.folder else [out]
            # A folder of which nothing is rewritten holds no record: it is made again.
            records = [open_safetensors(place).metadata.get(PROVENANCE_KEY) for place in places]
        except LoratoolsError:  # nothing, or nothing of ours: whether it may be replaced is the writer's question
            return False
        return bool(records) and set(records) == {wanted}

    def require_place(self, out: Path) -> None:
        """Raise UsageError or OutputRefused for a place that this output cannot have."""
        if self.folder and out.suffix == ".safetensors":
            what = "several files" if self.max_shard_size else "a folder"
            raise UsageError(f"the output is {what}", path=out, hint=f"name a folder, such as {out.with_suffix('')}/")
        if not self.folder and out.suffix != ".safetensors":
            hint = f"name it {out.name or 'merged'}.safetensors"
            raise UsageError("the output is one .safetensors file", path=out, hint=hint)
        if any(out.resolve().is_relative_to(folder.resolve()) for folder in self.folders):
            raise OutputRefused("the output lies in the input", path=out, hint="give the output another name")


def _stem(item: WeightsFile) -> str:
    """The name of a set of weights without numbers and suffix."""
    name = PurePosixPath(item.name).name.removesuffix(".safetensors")
    head, _, tail = name.rpartition("-of-")
    return head.rpartition("-")[0] if head and tail.isdecimal() else name


def _is_hashed(item: WeightsFile) -> bool:
    return any(key in item.metadata for key in HASH_KEYS)
