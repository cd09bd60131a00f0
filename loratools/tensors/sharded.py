"""A checkpoint in several safetensors files, told by its index or by numbers in their names, as one TensorSource."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loratools.errors import MalformedFile, PathNotFound, UnsafeFile, UsageError
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.safetensors_file import SafetensorsFile
from loratools.tensors.source import LocalFile
from loratools.tensors.strict_json import strict_json

INDEX_SUFFIX = ".safetensors.index.json"
INDEX_LIMIT = 32 << 20
"""The longest index that is read, in bytes."""
SHARD_LIMIT = 10_000

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_FORBIDDEN = re.compile(r'[/\\:\0-\x1f<>"|?*]')
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


class ShardedTensors:
    """The tensors of all shards; `warnings` are oddities that harm nobody, such as a wrong total_size."""

    def __init__(
        self, name: str, shards: Mapping[str, SafetensorsFile], places: Mapping[str, str], warnings: Sequence[str] = ()
    ) -> None:
        """`places` says which shard holds which key; raises MalformedFile unless the shards say the same."""
        self.name = name
        self.shards = dict(shards)
        self.warnings = tuple(warnings)
        self.metadata: Mapping[str, str] = {
            key: text for shard in reversed(list(shards.values())) for key, text in shard.metadata.items()
        }
        self.files: tuple[LocalFile, ...] = tuple(file for shard in shards.values() for file in shard.files)
        self._places = _agreed_places(name, shards, places)

    def keys(self) -> Sequence[str]:
        """The keys, shard by shard, in the order of their data."""
        return tuple(self._places)

    def __getitem__(self, key: str) -> LazyTensor:
        return self.shards[self._places[key]][key]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)


def _agreed_places(name: str, shards: Mapping[str, SafetensorsFile], places: Mapping[str, str]) -> dict[str, str]:
    """Which shard holds which key, in the order of the shards' data, when index and shards agree to the last key."""
    found: dict[str, str] = {}
    for shard_name, shard in shards.items():
        for key in shard.keys():  # noqa: SIM118 - a TensorSource is no mapping
            if key in found:
                raise MalformedFile(f"{key!r} is in {found[key]} and in {shard_name}", path=name, key=key)
            if key not in places:
                raise MalformedFile(f"{key!r} of {shard_name} is not in the index", path=name, key=key)
            if places[key] != shard_name:
                raise MalformedFile(f"{key!r} is in {shard_name}, the index says {places[key]}", path=name, key=key)
            found[key] = shard_name
    for key, shard_name in places.items():
        if key not in found:
            raise MalformedFile(f"{shard_name} lacks {key!r}, which the index has there", path=name, key=key)
    return found


def open_sharded(path: str | os.PathLike[str]) -> ShardedTensors:
    """The checkpoint at an index file, or in a folder that holds one index, or numbered shards, or one file.

    Raises PathNotFound, UsageError (several candidates), MalformedFile, UnsafeFile (a shard outside its folder).
    """
    place = Path(path)
    if not place.is_dir():
        return _open_index(place)
    names = sorted(os.listdir(place))  # noqa: PTH208 - names are what is judged
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indices) > 1:
        raise UsageError(f"the folder has {len(indices)} indices: {', '.join(indices)}", path=place, hint="name one")
    if indices:
        return _open_index(place / indices[0])
    shards = [name for name in names if name.endswith(".safetensors") and not name.startswith(".")]
    if not shards:
        raise PathNotFound("the folder holds no safetensors file", path=place)
    if len(shards) > 1:
        _check_numbers(shards, place)
    opened = {name: _open_shard(place, name) for name in shards}
    # Without an index the shards are the only witness; a key in two of them is still refused.
    places = {key: name for name, shard in opened.items() for key in shard}
    return ShardedTensors(str(place), opened, places)


def _check_numbers(names: Sequence[str], folder: Path) -> None:
    """Raises unless `names` are -00001-of-00003 and so on, of one stem and complete."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    sets = {(match["stem"], int(match["total"])) for match in found if match}
    if None in found or len(sets) != 1:
        raise UsageError(f"the folder holds {len(names)} safetensors files that are no one set", path=folder)
    (_, total), numbers = next(iter(sets)), sorted(int(match["number"]) for match in found if match)
    if numbers != list(range(1, total + 1)):
        raise MalformedFile(f"{total} shards are numbered, {len(numbers)} are there: {numbers[:20]}", path=folder)


def _open_index(path: Path) -> ShardedTensors:
    with LocalFile(path) as file:
        if file.size > INDEX_LIMIT:
            raise MalformedFile(f"an index of {file.size} bytes is over the limit of {INDEX_LIMIT}", path=path)
        document = strict_json(file.read(0, file.size), path=path, what="the index")
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise MalformedFile("the index has no weight_map of file names by key", path=path)
    names = sorted(set(places.values()))
    if len(names) > SHARD_LIMIT:
        raise MalformedFile(f"the index names {len(names)} shards, more than {SHARD_LIMIT}", path=path)
    for name in names:
        check_shard_name(name, path=path)
    shards = {name: _open_shard(path.parent, name) for name in names}
    tensors = ShardedTensors(str(path), shards, places, _size_warnings(document, shards))
    tensors.files = (*tensors.files, LocalFile(path))
    return tensors


def _size_warnings(document: Mapping[str, Any], shards: Mapping[str, SafetensorsFile]) -> list[str]:
    described = document.get("metadata")
    stated = described.get("total_size") if isinstance(described, dict) else None
    actual = sum(shard.header.payload for shard in shards.values())
    if stated is None or stated == actual:
        return []
    return [f"the index states a total_size of {stated}, the shards hold {actual} bytes"]


def check_shard_name(name: str, *, path: object) -> None:
    """Raises UnsafeFile for a shard name that is no bare file name on every system."""
    if (
        _FORBIDDEN.search(name)
        or name.startswith(".")
        or not name.endswith(".safetensors")
        or name != name.strip()
        or len(name.encode("utf-8")) > 255
        or _DEVICE.fullmatch(name)
    ):
        raise UnsafeFile(f"the index names the file {name!r}, which is no plain .safetensors name", path=path)


def _open_shard(folder: Path, name: str) -> SafetensorsFile:
    """The shard `name` of `folder`: a regular file there, or a link into the blobs of the same Hub cache."""
    path = folder / name
    if path.is_symlink():
        real = path.resolve()
        blobs = blobs_of(folder)
        if real.parent != folder.resolve() and (blobs is None or real.parent != blobs):
            raise UnsafeFile("the shard is a link out of its folder", path=path, hint=f"it points to {real}")
        file = LocalFile(real, follow_links=False)
        file.name = str(path)
        return SafetensorsFile(file)
    return SafetensorsFile(LocalFile(path, follow_links=False))


def blobs_of(folder: Path) -> Path | None:
    """The blobs of the Hub cache that `folder` is a snapshot (or a part of one) of, or None."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.parent.name == "snapshots":
            return (parent.parent.parent / "blobs").resolve()
    return None
