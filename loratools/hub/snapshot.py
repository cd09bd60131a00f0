"""From a reference to a path on this machine: what the Hub's own cache has, else (online) what the Hub has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loratools.bases.pipeline_index import PIPELINE
from loratools.errors import Unavailable
from loratools.formats.opening import read_config
from loratools.hub.failures import is_offline, offline, told
from loratools.hub.needed import needed_files
from loratools.hub.references import HubReference


def local_path(reference: HubReference, *, variant: str | None = None, pickles: bool = False) -> Path:
    """The folder of a pipeline, or the one file that the reference names, on this machine.

    What the cache holds completely is taken as it is; else the missing files are downloaded into it. Raises Unavailable
    for what is missing, gated or out of reach, and for what is not in the cache where HF_HUB_OFFLINE is set.
    """
    if reference.file is not None:
        return cached_file(reference) or downloaded(reference)
    folder = cached_pipeline(reference, variant=variant, pickles=pickles)
    return folder or _download_pipeline(reference, variant=variant, pickles=pickles)


def cached_file(reference: HubReference) -> Path | None:
    """A file of a repository, if it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    with told(reference):
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


def downloaded(reference: HubReference) -> Path:
    """One file in the cache as it is on the Hub now (offline: as the cache has it). Raises Unavailable."""
    from huggingface_hub import hf_hub_download

    with told(reference):
        return Path(hf_hub_download(reference.repository, reference.file or "", revision=reference.revision))


def _download_pipeline(reference: HubReference, *, variant: str | None, pickles: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with told(reference):
        if is_offline():
            raise offline(reference, "the Hub's cache does not hold a whole pipeline of that name")
        files = HfApi().list_repo_files(reference.repository, revision=reference.revision)
        if PIPELINE not in files:
            raise _no_pipeline(reference, files)
        index = downloaded(reference._replace(file=PIPELINE))
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
