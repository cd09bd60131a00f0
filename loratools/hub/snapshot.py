"""From a reference to a path on this machine: what the Hub's own cache has, else (online) what the Hub has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loratools.bases.pipeline_index import PIPELINE
from loratools.errors import LoratoolsError, Unavailable
from loratools.formats.opening import read_config
from loratools.hub.needed import needed_files
from loratools.hub.references import HubReference

_OFFLINE = "local files only (HF_HUB_OFFLINE); hf download {} puts it into the cache"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids any request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def local_path(reference: HubReference, *, variant: str | None = None, pickles: bool = False) -> Path:
    """The folder of a pipeline, or the one file that the reference names, on this machine.

    What the cache holds completely is taken as it is; else the missing files are downloaded into it. Raises Unavailable
    for what is missing, gated or out of reach, and for what is not in the cache where HF_HUB_OFFLINE is set.
    """
    if reference.file is not None:
        return cached_file(reference) or _download_file(reference)
    folder = cached_pipeline(reference, variant=variant, pickles=pickles)
    return folder or _download_pipeline(reference, variant=variant, pickles=pickles)


def cached_file(reference: HubReference) -> Path | None:
    """A file of a repository, if it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    with _told(reference):
        found = try_to_load_from_cache(reference.repository, reference.file or "", revision=reference.revision)
    return Path(found) if isinstance(found, str) else None


def cached_pipeline(reference: HubReference, *, variant: str | None = None, pickles: bool = False) -> Path | None:
    """The cache's folder of a pipeline, if it holds a set of weights of every component."""
    index = cached_file(reference._replace(file=PIPELINE))
    if index is None:
        return None
    folder = index.parent
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    described = read_config(index)
    wanted, missing = needed_files(described, files, variant, pickles=pickles)
    if missing or any(_lacks_shards(folder / name) for name in wanted if name.endswith(".json")):
        return None
    return folder


def _lacks_shards(index: Path) -> bool:
    """Whether a file is an index of shards that are not all there."""
    if ".safetensors.index" not in index.name:
        return False
    names = set(read_config(index).get("weight_map", {}).values())
    return not all((index.parent / str(name)).is_file() for name in names)


def _download_file(reference: HubReference) -> Path:
    from huggingface_hub import hf_hub_download

    with _told(reference):
        return Path(hf_hub_download(reference.repository, reference.file or "", revision=reference.revision))


def _download_pipeline(reference: HubReference, *, variant: str | None, pickles: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with _told(reference):
        if is_offline():
            raise Unavailable(
                "the Hub's cache does not hold a whole pipeline of that name",
                path=reference.name,
                hint=_OFFLINE.format(reference.repository),
            )
        files = HfApi().list_repo_files(reference.repository, revision=reference.revision)
        if PIPELINE not in files:
            raise _no_pipeline(reference, files)
        index = _download_file(reference._replace(file=PIPELINE))
        wanted, missing = needed_files(read_config(index), files, variant, pickles=pickles)
        if missing:
            raise _no_weights(reference, missing, files, pickles=pickles)
        # Patterns with brackets or stars are no names; the Hub's own names hold neither.
        folder = snapshot_download(
            reference.repository, revision=reference.revision or _commit(index), allow_patterns=list(wanted)
        )
        return Path(folder)


def _commit(cached: Path) -> str:
    """The commit that a file in the cache is of: what follows is taken from the same one."""
    return cached.parent.name


def _no_pipeline(reference: HubReference, files: Sequence[str]) -> Unavailable:
    single = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    hint = f"name one of its files: {reference.name}/{single[0]}" if single else "give a pipeline's repository"
    return Unavailable(f"the repository has no {PIPELINE}", path=reference.name, hint=hint)


def _no_weights(reference: HubReference, missing: Sequence[str], files: Sequence[str], *, pickles: bool) -> Unavailable:
    pickled = any(name.endswith(".bin") for name in files) and not pickles
    hint = "--unsafe-pickle takes its .bin files" if pickled else "--variant names one that it has"
    return Unavailable(f"the repository has no weights of {', '.join(missing)} to take", path=reference.name, hint=hint)


_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""What is wrong with this machine, not with the Hub."""
_NETWORK = ("httpx", "httpx2", "requests", "urllib3")
"""Libraries by which clients of different ages talk to the Hub: their exceptions have no root in common."""


@contextmanager
def _told(reference: HubReference) -> Iterator[None]:
    """What the Hub's client raises, as one of our errors."""
    from huggingface_hub import errors

    known: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.GatedRepoError, "the repository is gated", "accept its terms on the Hub, then hf auth login"),
        (
            errors.RepositoryNotFoundError,
            "the Hub has no repository of that name, or you have no access to it",
            "check the name; hf auth login",
        ),
        (errors.RevisionNotFoundError, "the repository has no such revision", "check the part behind @"),
        (errors.RemoteEntryNotFoundError, "the repository has no such file", "check its name on the Hub"),
        (errors.HFValidationError, "no name that a repository can have", "owner/name"),
    )
    try:
        yield
    except LoratoolsError:
        raise
    except Exception as error:
        row = next((row for row in known if isinstance(error, row[0])), None)
        if row is not None:
            raise Unavailable(row[1], path=reference.name, hint=row[2]) from error
        is_theirs = isinstance(error, OSError) and error.errno not in _OURS
        if not is_theirs and type(error).__module__.partition(".")[0] not in _NETWORK:
            raise
        if is_offline():
            hint = _OFFLINE.format(reference.repository)
            raise Unavailable("it is not in the Hub's cache", path=reference.name, hint=hint) from error
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Unavailable(f"the Hub cannot be reached: {first}", path=reference.name) from error
