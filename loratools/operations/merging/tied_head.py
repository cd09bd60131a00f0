"""Adapters beside a head that is its embedding once more: whether the one tensor can hold what they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loratools.bases.checkpoint import Checkpoint
from loratools.bases.ties import TIED, Tie
from loratools.bases.untying import with_own_head
from loratools.bases.weights import BaseWeights
from loratools.errors import NotRepresentable, UsageError
from loratools.operations.merging.matches import Weighed
from loratools.operations.merging.saved_whole import saved_modules
from loratools.tensors.lazy import LazyTensor

_UNTIE = "--untie writes a head of its own and says so in config.json; "
_BLOCK = 1 << 22  # elements that are compared at a time
_TURNED = {"down": "embedding_up", "up": "embedding_down"}
"""The factors of a layer, and those of an embedding that are their transposes: PEFT lays an embedding out [in, out]."""

Changed = tuple[float, Mapping[str, LazyTensor]]
"""What a change is multiplied by, and its factors; or the tensor saved whole, as `saved`."""


def untied(checkpoint: Checkpoint, tie: Tie | None) -> Checkpoint:
    """The model with a head of its own; UsageError where its configuration ties none, NotRepresentable where a head of
    its own would make another model.
    """
    if tie is None:
        raise UsageError(
            "there is nothing to untie: no config.json of the base model ties a head to its embedding",
            path=checkpoint.name,
            hint="leave --untie out, or name the model's folder",
        )
    if tie.scaled:
        raise NotRepresentable(
            f"the model scales what it gives to a head that is {tie.embedding} once more: with a head of its own it "
            "would be another model",
            path=checkpoint.name,
            hint="load the adapter beside the model instead of merging it",
        )
    return with_own_head(checkpoint, tie)


def once(tie: Tie, sets: Sequence[Weighed], weights: BaseWeights, *, untie: bool) -> tuple[str | None, str | None]:
    """The path that needs no place beside the embedding's, and a remark about what becomes of the two.

    Raises NotRepresentable where one of them would become another than the other, unless they are untied.
    """
    if untie:
        return None, f"{tie.head} becomes a tensor of its own, and config.json says {TIED}: false"
    both = False
    for item in sets:
        head, embedding = (_changes(item, path, weights, tie) for path in (tie.head, tie.embedding))
        if not head and not embedding:
            continue
        if not _alike(head, embedding):
            alone = tie.head if head else tie.embedding
            changed = "both, in two ways" if head and embedding else f"{alone} alone"
            raise NotRepresentable(
                f"the head {tie.head} is the embedding {tie.embedding} once more ({TIED}), and the "
                f"adapter changes {changed}: one tensor cannot hold that",
                path=weights.name,
                key=f"{alone}.weight",
                hint=f"{'' if tie.scaled else _UNTIE}--weights '*{alone}=0' leaves it",
            )
        both = True
    remark = f"{tie.head} is {tie.embedding} once more: what changes both alike is merged once" if both else None
    return (None if tie.stored else tie.head), remark


def _changes(given: Weighed, path: str, weights: BaseWeights, tie: Tie) -> list[Changed]:
    """Whatever changes the weight of one of both paths."""
    found: list[Changed] = []
    for item in given.source.adapters:
        by = given.scale_of(item.target.component, path)
        if item.target.paths == (path,) and by:
            found.append((by * float(item.scale), item.factors))
    for component, place, leaf, tensor in saved_modules(given.source, given.table):
        by = given.scale_of(component, path)
        if (place, leaf) == (path, "weight") and by:
            before = weights.weight(component, tie.embedding)
            if before is None or not _same_values(tensor, before):
                found.append((by, {"saved": tensor}))
    return found


def _alike(head: Sequence[Changed], embedding: Sequence[Changed]) -> bool:
    """Whether two lists of changes are those of one matrix."""
    if len(head) != len(embedding):
        return False
    return all(
        ours[0] == theirs[0] and _same_matrix(ours[1], theirs[1]) for ours, theirs in zip(head, embedding, strict=True)
    )


def _same_matrix(head: Mapping[str, LazyTensor], embedding: Mapping[str, LazyTensor]) -> bool:
    turned = {_TURNED.get(role, role): role for role in head}
    if turned.keys() != embedding.keys():
        return False
    for theirs, ours in turned.items():
        left, right = head[ours], embedding[theirs]
        if ours == theirs:
            if not _same_values(left, right):
                return False
        elif left.shape != right.shape[::-1] or not bool((left.load() == right.load().T).all()):
            return False
    return True


def _same_values(ours: LazyTensor, theirs: LazyTensor) -> bool:
    """Whether two tensors hold the same numbers, the first rounded to the dtype of the second."""
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == theirs.dtype:
        return ours.same_bytes(theirs)
    step = max(1, _BLOCK // max(1, ours.numel // ours.shape[0]))
    for start in range(0, ours.shape[0], step):
        stop = min(start + step, ours.shape[0])
        left, right = ours.rows(start, stop).load(), theirs.rows(start, stop).load()
        if not bool((left.to(right.dtype) == right).all()):
            return False
    return True
