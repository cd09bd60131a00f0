"""push: an adapter put on the Hub with a card that says what it is, after a look for what was not meant for others."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.errors import PathNotFound, UsageError, WrongRole
from loratools.formats.opening import CONFIG, PIPELINE, read_config
from loratools.formats.runtimes import loads
from loratools.hub.cards import CARD, card_text, parted
from loratools.hub.references import HubReference, hub_reference, is_hub_id, is_remote
from loratools.hub.tasks import task_of
from loratools.hub.upload import Sent, standing_card, upload
from loratools.operations.adapter_card import Facts, body, front_matter
from loratools.operations.hash import hash_files
from loratools.operations.header.private import private_keys, stripped
from loratools.operations.header.triggers import triggers
from loratools.operations.located import base_of
from loratools.operations.lora import Lora, open_lora
from loratools.operations.metadata import strip_metadata
from loratools.operations.outputs.provenance import PROVENANCE_KEY
from loratools.tensors.output import TEMPORARY_SUFFIX
from loratools.tensors.safetensors_file import open_safetensors

_GALLERY = "images"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was sent, or would be: `private` are the keys that hold something private, by file."""

    path: str
    repository: str
    files: tuple[str, ...]
    card: str
    private: dict[str, tuple[str, ...]]
    stripped: bool
    sent: Sent | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.push/1",
            "path": self.path,
            "repository": self.repository,
            "files": list(self.files),
            "card": self.card,
            "private": {name: list(keys) for name, keys in self.private.items()},
            "stripped": self.stripped,
            "commit": self.sent.commit if self.sent else None,
            "url": self.sent.url if self.sent else None,
            "pull_request": self.sent.pull_request if self.sent else None,
        }


def push(
    path: str | os.PathLike[str],
    repository: str,
    *,
    base_model: str | None = None,
    images: Sequence[tuple[str | os.PathLike[str], str]] = (),
    message: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    yes: bool = False,
    strip_private: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Commit an adapter file, or a folder with one, and a card to `owner/name` (or `hf://owner/name@branch`).

    `images` are (file, prompt) for the card's gallery; `private` makes the repository a private one. Private metadata
    are refused unless `yes`, or taken away in what is sent by `strip_private`; the file here stays as it is. A
    `dry_run` sends nothing. Raises UsageError, WrongRole for what is no adapter, and Unavailable.
    """
    target = _target(repository)
    if is_remote(path):
        raise UsageError("a file or folder of this machine is pushed", path=path, hint=f"loratools pull {path} -o DIR")
    if base_model is not None and not is_hub_id(base_model):
        raise UsageError(f"{base_model!r} is no name on the Hub", hint="--base-model owner/name")
    if (Path(path) / PIPELINE).is_file():
        hint = f"hf upload {target.repository} {path} sends it as it is, with the card that rebuild wrote"
        raise WrongRole("a pipeline is no adapter", path=path, hint=hint)
    lora = open_lora(path)
    files = _files(Path(path))
    found = {name: keys for name, file in files.items() if (keys := _private(name, file))}
    if found and not (yes or strip_private or dry_run):
        told = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in found.items())
        hint = "--strip-private takes them out of what is sent, --yes sends them; metadata show tells what they say"
        raise UsageError(f"the metadata hold private things: {told}", path=path, hint=hint, private=found)
    shown = _images(images)
    with _stripped(files, found if strip_private else {}) as ready:
        here = files.get(CARD)
        standing = _standing(here, target, strip=strip_private)
        named = base_model or base_of(lora)
        facts = _facts(lora, target, ready, shown)._replace(base_model=named if named and is_hub_id(named) else None)
        card = card_text(front_matter(facts, standing[0]), body(facts, standing[1]))
        contents: dict[str, Path | bytes] = {**ready, **{name: file for name, (file, _) in shown.items()}}
        contents[CARD] = card.encode()
        sent = None
        if not dry_run:
            text = message or f"Upload {Path(path).name} with loratools"
            sent = upload(target, contents, message=text, create_pr=create_pr, private=private)
    return Pushed(str(path), target.repository, tuple(sorted(contents)), card, found, strip_private, sent)


def _target(repository: str) -> HubReference:
    target = hub_reference(repository) if is_remote(repository) or not is_hub_id(repository) else None
    target = target or (HubReference(repository) if is_hub_id(repository) else None)
    if target is None or target.file is not None:
        raise UsageError("no repository of the Hub", path=repository, hint="owner/name")
    return target


def _files(path: Path) -> dict[str, Path]:
    """What is sent, by its name in the repository: the file, or all of the folder that is neither hidden nor linked."""
    if path.is_file():
        found = {path.name: path}
    else:
        found = {
            item.relative_to(path).as_posix(): item
            for item in sorted(path.rglob("*"))
            if item.is_file()
            and not item.is_symlink()
            and not any(part.startswith(".") for part in item.relative_to(path).parts)
            and not item.name.endswith(TEMPORARY_SUFFIX)
        }
    if not any(name.endswith(".safetensors") for name in found):
        raise UsageError("only safetensors files are pushed", path=path, hint="loratools convert makes one")
    return found


def _private(name: str, file: Path) -> tuple[str, ...]:
    """The keys of a file's metadata, of a configuration, or of the card that hold something private."""
    if file.suffix == ".safetensors":
        return private_keys(open_safetensors(file).metadata)
    if name == CARD:
        return _private_entries(_parted(file)[0])
    return _private_entries(read_config(file)) if file.name == CONFIG else ()


def _private_entries(entries: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key, value in entries.items() if _kept(key, value) != [value])


def _public(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without what is private, also inside of lists and mappings."""
    return {name: kept for name, value in entries.items() for kept in _kept(name, value)}


def _kept(key: str, value: Any) -> list[Any]:
    """What is left of a value: none, or one."""
    if isinstance(value, str):
        return list(stripped({key: value})[0].values())
    if isinstance(value, list):
        return [[kept for item in value for kept in _kept(key, item)]]
    return [_public(value)] if isinstance(value, dict) else [value]


def _parted(card: Path) -> tuple[dict[str, Any], str]:
    return parted(card.read_text(encoding="utf-8"), path=card)


@contextmanager
def _stripped(files: dict[str, Path], found: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Path]]:
    """The files to send but for the card, those named in `found` as copies without what is private."""
    with tempfile.TemporaryDirectory(prefix="loratools-push-") as folder:
        ready = {name: file for name, file in files.items() if name != CARD}
        for name in found.keys() & ready.keys():
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if copy.suffix == ".safetensors":
                strip_metadata(files[name], out=copy)
            else:
                copy.write_text(json.dumps(_public(read_config(files[name])), indent=2))
            ready[name] = copy
        yield ready


def _images(images: Sequence[tuple[str | os.PathLike[str], str]]) -> dict[str, tuple[Path, str]]:
    """The pictures of the gallery by their names in the repository."""
    found: dict[str, tuple[Path, str]] = {}
    for file, prompt in images:
        path = Path(file)
        if not path.is_file():
            raise PathNotFound("no such picture", path=path)
        found[f"{_GALLERY}/{path.name}"] = (path, prompt)
    return found


def _standing(here: Path | None, target: HubReference, *, strip: bool) -> tuple[dict[str, Any], str]:
    """The card that stands: the folder's own text where it has one, with the keys that only the Hub's has; with `strip`
    without what is private in the folder's own.
    """
    remote = standing_card(target)
    there = parted(remote, path=target.name) if remote is not None else ({}, "")
    if here is None:
        return there
    front, text = _parted(here)
    return {**there[0], **(_public(front) if strip else front)}, text


def _facts(lora: Lora, target: HubReference, files: dict[str, Path], images: dict[str, tuple[Path, str]]) -> Facts:
    """What the card tells, but for the base model."""
    metadata = lora.adapter_set.metadata
    ranks = Counter(rank for item in lora.adapters if (rank := item.rank) is not None)
    words = next((item.words for item in triggers(Path(lora.name), dict(metadata))), ())
    sources = {name: open_safetensors(file).metadata for name, file in files.items() if name.endswith(".safetensors")}
    weights = next(iter(sources))
    by_diffusers = next(answer for answer in loads(lora.reading) if answer.runtime == "diffusers")
    task = task_of([lora.architecture] if lora.architecture else lora.candidates)
    return Facts(
        repository=target.repository,
        title=metadata.get("modelspec.title") or target.repository.partition("/")[2],
        file=weights,
        architecture=lora.architecture,
        task=task.tag if task else None,
        format=lora.format,
        kinds=lora.kinds,
        ranks=sorted(ranks),
        base_model=None,
        words=words,
        images=[(name, prompt) for name, (_, prompt) in images.items()],
        hashes=hash_files(files[weights]),
        diffusers_loads=by_diffusers.loaded == len(lora.adapters),
        recipes={name: held[PROVENANCE_KEY] for name, held in sources.items() if PROVENANCE_KEY in held},
    )
