"""A language model given a head of its own, where it reads its embedding once more: for a change of one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from loratools.bases.checkpoint import Checkpoint
from loratools.bases.ties import CONFIG, NESTED, TIED, Tie, read_config, tie_of
from loratools.bases.weights import open_base
from loratools.tensors.aliased import Aliased


def tie_in(checkpoint: Checkpoint) -> Tie | None:
    """The tie of a model's folder, or None: also for a file without a configuration, which cannot say."""
    file = checkpoint.others.get(CONFIG)
    parts = {id(item.part): item.part for item in checkpoint.weights}
    if file is None or len(parts) != 1:
        return None
    return tie_of(next(iter(parts.values())), read_config(file))


def with_own_head(checkpoint: Checkpoint, tie: Tie) -> Checkpoint:
    """The same model with the head as a tensor of its own, in the file that holds the embedding, and a configuration
    that says so.
    """
    rewritten = {CONFIG: _untied_config(read_config(checkpoint.others[CONFIG]))}
    if tie.stored:
        return replace(checkpoint, rewritten=rewritten)
    head, embedding = f"{tie.head}.weight", f"{tie.embedding}.weight"
    part = Aliased(checkpoint.weights[0].part, head, embedding)
    weights = tuple(
        replace(item, part=part, keys=(*item.keys, head), file=None)
        if embedding in item.keys
        else replace(item, part=part)
        for item in checkpoint.weights
    )
    base = open_base(checkpoint.name, [(component, part) for component, _ in checkpoint.base.parts])
    return replace(checkpoint, weights=weights, base=base, rewritten=rewritten)


def _untied_config(config: dict[str, Any]) -> bytes:
    """The configuration with the tie denied wherever it may be asserted."""
    nested = {
        name: {**part, TIED: False} for name in NESTED if isinstance(part := config.get(name), dict) and TIED in part
    }
    return (json.dumps({**config, **nested, TIED: False}, indent=2, ensure_ascii=False) + "\n").encode()
