"""Tensors that a model has under two names: the same place of a file, or a head that is its embedding once more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.bases.pairing import Twin
from loratools.errors import MalformedFile
from loratools.tensors.segments import Bytes
from loratools.tensors.source import LocalFile, TensorSource
from loratools.tensors.strict_json import strict_json

CONFIG = "config.json"
"""What transformers calls the configuration beside a model's weights."""
TIED = "tie_word_embeddings"
"""The field of a configuration that makes the head the embedding once more."""
HEADS = ("lm_head", "embed_out")
"""The last words of layers that many language models tie to their embedding."""
NESTED = ("text_config", "llm_config")
"""Where the configuration of a model of several modalities speaks of its language model."""

_TABLES = ("embed_tokens", "embed_in", "shared", "word_embeddings", "wte")
_SHARED = "shared"
_HEADS = {"gpt_neox": "embed_out", "whisper": "proj_out"}  # model type → its head, where that is not lm_head
_WITH_HEAD = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_LIMIT = 16 << 20  # bytes of a configuration


@dataclass(frozen=True, slots=True)
class Tie:
    """A head and an embedding that are one tensor, by their paths.

    `stored` says whether the files hold it twice; `scaled` that the model scales what it gives to a tied head, so that
    a head of its own would make another model (T5).
    """

    head: str
    embedding: str
    stored: bool
    scaled: bool = False


def read_config(file: LocalFile) -> dict[str, Any]:
    """The configuration of a model as plain JSON; raises MalformedFile."""
    if file.size > _LIMIT:
        raise MalformedFile(f"a configuration of {file.size} bytes", path=file.name, hint=f"at most {_LIMIT}")
    found = strict_json(file.read(0, file.size), path=file.name, what="the configuration", infinite=True)
    if not isinstance(found, dict):
        raise MalformedFile("the configuration is no JSON object", path=file.name)
    return found


def tie_beside(folder: Path, source: TensorSource) -> Tie | None:
    """The tie of a model's folder, by the configuration that stands in it."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    with LocalFile(path) as file:
        return tie_of(source, read_config(file))


def tie_of(source: TensorSource, config: Mapping[str, Any]) -> Tie | None:
    """How a language model with such a configuration ties its head, or None where it has a head of its own, or none.

    A head that the files hold beside the embedding is compared with it: where they differ, transformers leaves them
    apart, whatever the configuration says.
    """
    classes = config.get("architectures") or []
    if not any(str(name).endswith(_WITH_HEAD) for name in classes):
        return None
    paths = {key.removesuffix(".weight"): key for key in source if key.endswith(".weight")}
    heads = [path for path in paths if path.rpartition(".")[2] in HEADS]
    tables = sorted((path for path in paths if path.rpartition(".")[2] in _TABLES), key=len)
    said = _said(config)
    if not tables or said is False or (said is None and heads):
        return None
    scaled = bool(config.get("is_encoder_decoder"))
    if not heads:
        return Tie(_HEADS.get(str(config.get("model_type")), "lm_head"), tables[0], stored=False, scaled=scaled)
    same = source[paths[heads[0]]].same_bytes(source[paths[tables[0]]])
    return Tie(heads[0], tables[0], stored=True, scaled=scaled) if same else None


def copies(embedding: str, paths: Iterable[str]) -> list[str]:
    """The embeddings of the stacks that read a shared one, in a model with these paths: `encoder.embed_tokens`."""
    root = embedding.removesuffix(_SHARED)
    if embedding == root:
        return []
    held = tuple(paths)
    stacks = [f"{root}{stack}." for stack in ("encoder", "decoder")]
    return [f"{stack}embed_tokens" for stack in stacks if any(path.startswith(stack) for path in held)]


def _said(config: Mapping[str, Any]) -> bool | None:
    """What a configuration says about the tie, at its top or where it speaks of the language model."""
    nested = (config.get(name) for name in NESTED)
    for part in (config, *(part for part in nested if isinstance(part, dict))):
        if isinstance(part.get(TIED), bool):
            return bool(part[TIED])
    return None


def untied(twins: Sequence[Twin]) -> tuple[list[Twin], dict[str, Twin]]:
    """Each tensor once, under its first name or, where one is an embedding, under that one's; and every other one by
    its path, with the one that stands for it.

    Reads a head and an embedding of one shape, to compare them.
    """
    tables = [twin for twin in twins if twin.sort == "embedding"]
    kept: list[Twin] = []
    others: dict[str, Twin] = {}
    places: dict[tuple[tuple[Bytes, ...], ...], Twin] = {}
    for twin in twins:
        place = _place(twin)
        is_head = twin.sort == "layer" and twin.target.paths[0].rpartition(".")[2] in HEADS
        first = places.get(place) if all(place) else None
        if first is None and is_head:
            first = next((table for table in tables if _equal(table, twin)), None)
        if first is None:
            kept.append(twin)
            places[place] = twin
        else:
            others[twin.target.paths[0]] = first
    return kept, others


def _place(twin: Twin) -> tuple[tuple[Bytes, ...], ...]:
    """Where both versions lie in their files; empty where a file does not hold them as they are."""
    sides = (twin.base.segments, twin.tuned.segments)
    return tuple(tuple(segment for segment in side if isinstance(segment, Bytes)) for side in sides)


def _equal(first: Twin, second: Twin) -> bool:
    return (
        first.base.shape == second.base.shape
        and first.tuned.same_bytes(second.tuned)
        and first.base.same_bytes(second.base)
    )
