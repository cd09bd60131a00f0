"""A base model as files that can be written again: those of weights, those that go along, those that must not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from loratools.bases.pipeline_index import PIPELINE
from loratools.bases.weights import Base, open_base
from loratools.errors import PathNotFound, UnsafeFile, UsageError, WrongRole
from loratools.tensors.aliased import Aliased
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.sharded import ShardedTensors, blobs_of, open_sharded
from loratools.tensors.source import LocalFile, TensorSource

_INDEX = re.compile(r".+\.safetensors\.index(\.[A-Za-z0-9_-]+)?\.json")
_NUMBERED = re.compile(r".+-\d{5}-of-\d{5}(\.[A-Za-z0-9_-]+)?\.safetensors")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Weights in forms that are not read: beside merged ones they would be the old model under the new one's name.
OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pb", ".tflite")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of weights: its relative name in the output, the tensors it holds of `part`, its metadata.

    `index` is the relative name of the index that lists it, for a shard; `file` the file itself where it could go along
    as it is (a pickle could not).
    """

    name: str
    part: TensorSource
    keys: tuple[str, ...]
    metadata: Mapping[str, str]
    index: str | None = None
    file: LocalFile | None = None

    @property
    def folder(self) -> str:
        """The folder it stands in, "" for the root: a pipeline's component."""
        parent = str(PurePosixPath(self.name).parent)
        return "" if parent == "." else parent


@dataclass(frozen=True)
class Checkpoint:
    """A base model, opened. `name` is what messages call it; `folder` says whether it is one.

    `others` are the files that are no weights we read, by relative name; `base` tells what its weights are; `rewritten`
    are the `others` that go along with another content.
    """

    name: str
    folder: bool
    weights: tuple[WeightsFile, ...]
    others: Mapping[str, LocalFile]
    base: Base
    rewritten: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> tuple[LocalFile, ...]:
        """Every local file of it."""
        parts = {id(item.part): item.part for item in self.weights}
        return (*(file for part in parts.values() for file in part.files), *self.others.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Oddities of its indices that harm nobody."""
        parts = {id(item.part): item.part for item in self.weights}.values()
        plain = (part.source if isinstance(part, Aliased) else part for part in parts)
        return tuple(text for part in plain if isinstance(part, ShardedTensors) for text in part.warnings)

    def beside(self, touched: frozenset[str]) -> tuple[Mapping[str, LocalFile], tuple[str, ...]]:
        """The files that go along unchanged, and the names of those that must not: other forms of the weights, at the
        root and in the `touched` folders, which would still be the old ones.
        """
        kept: dict[str, LocalFile] = {}
        left: list[str] = []
        for name, file in self.others.items():
            place = str(PurePosixPath(name).parent)
            is_weights = name.lower().endswith((".safetensors", *PICKLES, *OTHER_WEIGHTS))
            if is_weights and touched and (place == "." or place in touched):
                left.append(name)
            else:
                kept[name] = file
        return kept, tuple(left)


def open_checkpoint(path: str | os.PathLike[str], *, unsafe_pickle: bool = False) -> Checkpoint:
    """Open a single file, an index of shards, a model folder or a pipeline folder: headers only.

    Raises PathNotFound, MalformedFile, UnsafeFile (pickles without `unsafe_pickle`, links out of the folder),
    WrongRole (no base model), UsageError (several models in one folder).
    """
    place = Path(path)
    name = os.fspath(path)
    if not os.path.lexists(place):
        raise PathNotFound("no such file or folder", path=name)
    if not place.is_dir():
        if _INDEX.fullmatch(place.name):
            shards = open_sharded(place)
            files = tuple(_files_of(shards, "", place.name))
            others = {place.name: LocalFile(place)}
            return Checkpoint(name, True, files, others, open_base(name, [(None, shards)]))
        source = _open_file(place, unsafe_pickle=unsafe_pickle)
        files = tuple(_files_of(source, "", place.with_suffix(".safetensors").name))
        return Checkpoint(name, False, files, {}, open_base(name, [(None, source)]))
    return _open_folder(place, unsafe_pickle=unsafe_pickle)


def _open_folder(root: Path, *, unsafe_pickle: bool) -> Checkpoint:
    found = dict(walk(root))
    is_pipeline = PIPELINE in found
    places: dict[str, list[str]] = {}
    for name in found:
        parent = str(PurePosixPath(name).parent)
        places.setdefault("" if parent == "." else parent, []).append(name)
    weights: list[WeightsFile] = []
    parts: list[tuple[str | None, TensorSource]] = []
    taken: set[str] = set()
    for folder, names in places.items():
        if is_pipeline and (not folder or "/" in folder):
            continue  # a pipeline's weights stand in the folders of its components
        if not is_pipeline and folder:
            continue
        for source, entry in _sources(root / folder, names, unsafe_pickle=unsafe_pickle):
            items = list(_files_of(source, folder, entry))
            weights += items
            parts.append((folder or None, source))
            taken.update(item.name for item in items)
            taken.add(f"{folder}/{entry}" if folder else entry)
    if not parts:
        raise WrongRole("the folder holds no weights that are read", path=root, hint="safetensors files are")
    if not is_pipeline and len(parts) > 1:
        listed = ", ".join(sorted(item.name for item in weights)[:4])
        raise UsageError(f"the folder holds {len(parts)} models ({listed})", path=root, hint="name one of the files")
    indices = {item.index for item in weights if item.index}
    others = {name: file for name, file in found.items() if name not in taken or name in indices}
    return Checkpoint(str(root), True, tuple(weights), others, open_base(str(root), parts))


def walk(root: Path) -> Iterator[tuple[str, LocalFile]]:
    """Every file below `root` by relative name, sorted; names that begin with a dot are a repository's own matters."""
    blobs = blobs_of(root)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if name.startswith("."):
                continue
            real = path.resolve()
            if path.is_symlink() and not (real.is_relative_to(root.resolve()) or (blobs and real.parent == blobs)):
                raise UnsafeFile("a file of the folder is a link out of it", path=path, hint=f"it points to {real}")
            file = LocalFile(real)
            file.name = str(path)
            yield path.relative_to(root).as_posix(), file


def _sources(folder: Path, names: Sequence[str], *, unsafe_pickle: bool) -> Iterator[tuple[TensorSource, str]]:
    """The sets of weights of one folder, each with the file that opens it, the one without a variant first."""
    files = [PurePosixPath(name).name for name in names]
    indices = [name for name in files if _INDEX.fullmatch(name)]
    opened: list[tuple[TensorSource, str]] = [(open_sharded(folder / name), name) for name in indices]
    single = [name for name in files if name.endswith(".safetensors") and not _NUMBERED.fullmatch(name)]
    opened += [(open_safetensors(folder / name), name) for name in single]
    if not opened and any(_NUMBERED.fullmatch(name) for name in files):
        opened = [(open_sharded(folder), "")]
    pickles = [name for name in files if name.endswith(PICKLES) and "-of-" not in name]
    if not opened and pickles:
        plain = min(pickles, key=lambda name: (name.count("."), name))
        opened = [(_open_file(folder / plain, unsafe_pickle=unsafe_pickle), plain)]
    yield from sorted(opened, key=lambda item: (item[1].count("."), item[1]))


def _open_file(path: Path, *, unsafe_pickle: bool) -> TensorSource:
    if path.suffix.lower() in PICKLES:
        from loratools.tensors.pickle_file import open_pickle  # its checks and its child cost more than most commands

        return open_pickle(path, allowed=unsafe_pickle)
    return open_safetensors(path)


def _files_of(source: TensorSource, folder: str, entry: str) -> Iterator[WeightsFile]:
    """The files that a set of weights is in, by their names in the output."""
    prefix = f"{folder}/" if folder else ""
    if isinstance(source, ShardedTensors):
        for name, shard in source.shards.items():
            index = f"{prefix}{entry}" if entry.endswith(".json") else None
            yield WeightsFile(prefix + name, source, tuple(shard.keys()), shard.metadata, index, shard.files[0])
        return
    plain = entry.endswith(".safetensors")
    name = entry if plain else _as_safetensors(entry)
    file = source.files[0] if plain else None
    yield WeightsFile(prefix + name, source, tuple(source.keys()), source.metadata, None, file)


def _as_safetensors(name: str) -> str:
    """What a pickle of weights is called once it is a safetensors file: pytorch_model.bin → model.safetensors."""
    stem, _, _ = name.rpartition(".")
    return f"{'model' if stem == 'pytorch_model' else stem}.safetensors"
