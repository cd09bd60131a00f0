"""A repository of the Hub as it is at one commit: its files, and the adapter among them fetched or looked at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from loratools.errors import Unavailable, UsageError
from loratools.formats.configs import parse_json
from loratools.formats.opening import CONFIG, WEIGHTS, Opened, Part
from loratools.hub.cards import CARD
from loratools.hub.contents import Contents, Piece, contents
from loratools.hub.failures import is_offline, told
from loratools.hub.ranges import RemoteFile
from loratools.hub.references import HubReference
from loratools.hub.snapshot import cached_file, downloaded, local_path
from loratools.tensors.header import HEADER_LIMIT
from loratools.tensors.safetensors_file import SafetensorsFile

_CONFIG_LIMIT = 16 << 20


class Look(NamedTuple):
    """A reference opened by its headers alone; `reference` names the commit, `files` are what was asked for."""

    opened: Opened
    reference: HubReference
    files: tuple[RemoteFile, ...]


class Fetched(NamedTuple):
    """A reference made a path on this machine; `reference` names the commit that `path` is of."""

    path: Path
    reference: HubReference
    files: tuple[Path, ...]


def listing(reference: HubReference) -> tuple[str, tuple[str, ...]]:
    """The commit that a revision is now, and the names of its files. Raises Unavailable."""
    from huggingface_hub import HfApi

    if is_offline():
        return _cached_listing(reference)
    with told(reference):
        info = HfApi().model_info(reference.repository, revision=reference.revision)
    if info.sha is None:
        raise Unavailable("the Hub does not say which commit it answers for", path=reference.name)
    return info.sha, tuple(item.rfilename for item in info.siblings or ())


def _cached_listing(reference: HubReference) -> tuple[str, tuple[str, ...]]:
    """The same of what the cache holds."""
    from huggingface_hub import snapshot_download

    with told(reference):
        folder = Path(snapshot_download(reference.repository, revision=reference.revision, local_files_only=True))
    return folder.name, tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fetched(reference: HubReference, *, pickles: bool = False) -> Fetched:
    """The file, the adapter or the pipeline that a reference names, in the Hub's cache. Raises Unavailable."""
    if reference.file is not None:
        path = downloaded(reference)
        return Fetched(path, reference.of(reference.file, _commit_of(path, reference.file)), (path,))
    commit, files = listing(reference)
    found = contents(files, reference)
    pinned = reference.of(None, commit)
    if found.is_pipeline:
        folder = local_path(pinned, pickles=pickles)
        return Fetched(folder, pinned, tuple(sorted(path for path in folder.rglob("*") if path.is_file())))
    paths = tuple(downloaded(pinned.of(name)) for name in found.files)
    if found.is_folder:
        folder = paths[0].parent
        for _ in range(found.files[0].count("/")):
            folder = folder.parent
        return Fetched(folder, pinned, paths)
    return Fetched(paths[0], pinned.of(found.pieces[0].weights), paths)


def _commit_of(path: Path, file: str) -> str:
    """The commit of a file in the cache, which the folder of its snapshot is named by."""
    return path.parents[file.count("/")].name


def look(reference: HubReference) -> Look:
    """Open an adapter by its headers: at most two range requests a file of weights, and no value of any tensor.

    What the cache holds at a named commit is not asked for again; where HF_HUB_OFFLINE is set nothing is asked for.
    Raises Unavailable, MalformedFile, and UsageError for a file that is no safetensors file.
    """
    if reference.is_pinned and reference.file is None and not is_offline():
        # As a catalogue names a PEFT folder. The Hub answers for a list of files a fifth as often as for a file.
        try:
            return _looked_at(reference, reference, contents((CONFIG, WEIGHTS[0]), reference))
        except Unavailable as error:
            if error.evidence.get("reason") != "file-not-found":
                raise
    return _looked_at(reference, *_to_look_at(reference))


def _looked_at(reference: HubReference, pinned: HubReference, found: Contents) -> Look:
    parts: list[Part] = []
    files: list[RemoteFile] = []
    for piece in found.pieces:
        config = None
        if piece.config is not None:
            small = _file(pinned.of(piece.config), _CONFIG_LIMIT, files)
            config = parse_json(small.whole(), path=small.name)
        if not piece.weights.endswith(".safetensors"):
            raise UsageError(
                "only safetensors files show what they hold from afar",
                path=pinned.of(piece.weights).name,
                hint="--weights fetches the file",
            )
        weights = _file(pinned.of(piece.weights), HEADER_LIMIT + 8, files)
        parts.append(Part(piece.component, SafetensorsFile(weights), config))
    told_by = files[-1].reference
    named = told_by if reference.file is not None or not found.is_folder else pinned
    return Look(Opened(named.name, tuple(parts), "peft" if found.is_folder else "file"), named, tuple(files))


def _file(reference: HubReference, limit: int, files: list[RemoteFile]) -> RemoteFile:
    files.append(RemoteFile(reference, limit=limit))
    return files[-1]


def _to_look_at(reference: HubReference) -> tuple[HubReference, Contents]:
    """The repository at its commit and what of it is to be looked at; a named file is pinned by its own answer."""
    if reference.file is not None:
        return reference, Contents((Piece(reference.file),))
    commit, files = listing(reference)
    found = contents(files, reference)
    if found.is_pipeline:
        raise UsageError(
            "a pipeline is not looked at from afar", path=reference.name, hint="name a file of it, or --weights"
        )
    return reference.of(None, commit), found


def is_here(reference: HubReference) -> bool:
    """Whether the cache answers for a reference: offline always, else where it holds the file of a named commit."""
    if is_offline():
        return True
    return reference.is_pinned and reference.file is not None and cached_file(reference) is not None


def card_of(reference: HubReference) -> Path | None:
    """The card of a repository, on this machine; None where it has none, or none is here and no request is allowed."""
    card = reference.of(CARD)
    try:
        return downloaded(card)
    except Unavailable as error:
        if error.evidence.get("reason") in ("file-not-found", "offline"):
            return None
        raise
