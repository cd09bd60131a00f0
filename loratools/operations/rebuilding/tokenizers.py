"""Tokenizers for a pipeline made of a single file, which holds none: given, beside the configuration, or cached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loratools.bases.checkpoint import walk
from loratools.errors import PathNotFound, Unavailable, UsageError, nearest
from loratools.hub.references import HubReference
from loratools.hub.snapshot import cached_file
from loratools.pipelines.settings import Settings
from loratools.tensors.source import LocalFile

CONFIG = "tokenizer_config.json"
FILES = frozenset(
    {
        CONFIG, "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
        "spiece.model", "tokenizer.model",
    }
)  # fmt: skip
_WHOLE = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
"""Any of these sets of files holds a whole vocabulary."""


class Home(NamedTuple):
    """A repository of the Hub whose folder holds the tokenizer that an architecture uses under that name."""

    architecture: str
    tokenizer: str
    repository: str
    folder: str


_CLIP_L = "openai/clip-vit-large-patch14"
HOMES = (
    Home("sd1", "tokenizer", "stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    Home("sd1", "tokenizer", "runwayml/stable-diffusion-v1-5", "tokenizer"),
    Home("sd1", "tokenizer", "CompVis/stable-diffusion-v1-4", "tokenizer"),
    Home("sd1", "tokenizer", _CLIP_L, ""),
    Home("sd2", "tokenizer", "stabilityai/stable-diffusion-2-1", "tokenizer"),
    Home("sd2", "tokenizer", "stabilityai/stable-diffusion-2-1-base", "tokenizer"),
    Home("sd2", "tokenizer", "stabilityai/stable-diffusion-2", "tokenizer"),
    Home("sd2", "tokenizer", "stabilityai/stable-diffusion-2-base", "tokenizer"),
    Home("sdxl", "tokenizer", "stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    Home("sdxl", "tokenizer_2", "stabilityai/stable-diffusion-xl-base-1.0", "tokenizer_2"),
    Home("sdxl", "tokenizer", _CLIP_L, ""),
    Home("flux1", "tokenizer", "black-forest-labs/FLUX.1-dev", "tokenizer"),
    Home("flux1", "tokenizer_2", "black-forest-labs/FLUX.1-dev", "tokenizer_2"),
    Home("flux1", "tokenizer", "black-forest-labs/FLUX.1-schnell", "tokenizer"),
    Home("flux1", "tokenizer_2", "black-forest-labs/FLUX.1-schnell", "tokenizer_2"),
    Home("flux1", "tokenizer", _CLIP_L, ""),
)


def texts(tokenizer: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...]:
    """What a caller names as tokenizers: `DIR`, or several `NAME=DIR`."""
    if tokenizer is None:
        return ()
    return (os.fspath(tokenizer),) if isinstance(tokenizer, str | os.PathLike) else tuple(map(os.fspath, tokenizer))


def tokenizer_files(settings: Settings, architecture: str, given: Sequence[str]) -> dict[str, LocalFile]:
    """The files of every tokenizer that the pipeline has, by relative name in its folder.

    `given` are `DIR` or `NAME=DIR`. Raises Unavailable where one is nowhere on this machine, UsageError, PathNotFound.
    """
    wanted = settings.wanted_tokenizers
    folders = _given(given, wanted)
    found: dict[str, LocalFile] = {}
    missing: list[str] = []
    for name in wanted:
        if name in folders:
            held: Mapping[str, LocalFile] = _held(folders[name])
        elif name in settings.tokenizers:
            held = settings.tokenizers[name]
        else:
            held = _cached(name, architecture)
        if not held:
            missing.append(name)
        found |= {f"{name}/{rest}": file for rest, file in held.items()}
    if missing:
        homes = [home for home in HOMES if home.architecture == architecture and home.tokenizer in missing]
        place = f"{homes[0].repository} of the Hub has it" if homes else "its pipeline has it"
        raise Unavailable(
            f"a single file holds no tokenizer, and there is no {' and no '.join(missing)} on this machine",
            hint=f"--tokenizer {missing[0]}=DIR, or --config with a pipeline's folder; {place}",
            missing=missing,
        )
    return found


def _given(given: Sequence[str], wanted: Sequence[str]) -> dict[str, Path]:
    """The folders that were named, by tokenizer; a folder with folders of that name stands for all of them."""
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if equals and name in wanted and not Path(text).exists():
            folders[name] = Path(place)
            continue
        folder = Path(text)
        nested = {inner: folder / inner for inner in wanted if (folder / inner).is_dir()}
        if nested:
            folders |= nested
        elif len(wanted) == 1:
            folders[wanted[0]] = folder
        elif not folder.exists() and equals:
            raise UsageError(f"the pipeline has no {name!r}", hint=nearest(name, wanted) or f"{', '.join(wanted)}")
        else:
            raise UsageError(f"the pipeline has {len(wanted)} tokenizers", hint=f"--tokenizer {wanted[0]}={text}")
    for name, folder in folders.items():
        if not _held(folder):
            raise PathNotFound(f"the folder holds no {name}", path=folder, hint=f"{CONFIG}, and the vocabulary")
    return folders


def _held(folder: Path) -> dict[str, LocalFile]:
    """The files of a tokenizer folder; none where its vocabulary is not there."""
    if not folder.is_dir():
        return {}
    found = {name: file for name, file in walk(folder) if name in FILES}
    whole = CONFIG in found and any(all(name in found for name in names) for names in _WHOLE)
    return found if whole else {}


def _cached(name: str, architecture: str) -> dict[str, LocalFile]:
    """The files in the Hub's cache of the first repository that has them there."""
    return next((held for folder in cached_folders(name, architecture) if (held := _held(folder))), {})


def cached_folders(name: str, architecture: str | None = None) -> Iterator[Path]:
    """The folders in the Hub's cache where a tokenizer of that name is looked for, of one architecture or of any."""
    for home in HOMES:
        if home.tokenizer == name and architecture in (None, home.architecture):
            inner = f"{home.folder}/{CONFIG}" if home.folder else CONFIG
            config = cached_file(HubReference(home.repository, None, inner))
            if config:
                yield config.parent
