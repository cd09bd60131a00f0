"""MLX' experts: all of a layer in two tensors, lora_a [experts, r, in] and lora_b [experts, out, r], not transposed.

mlx-lm first had them in a matrix lora_a [experts · r, in], the experts' rows one after another: that is read, too.
"""

from __future__ import annotations

from loratools.architectures.llm_namings import Switch, expert_of_switch
from loratools.errors import IncompleteAdapter
from loratools.formats.collect import Found, Group
from loratools.formats.detect import Stem
from loratools.tensors.lazy import LazyTensor

FAMILY = "mlx"


def unswitched(groups: dict[Stem, Group]) -> tuple[dict[Stem, Group], Switch]:
    """The groups with one for each expert in the place of those of all experts, and in which form these were."""
    found: dict[Stem, Group] = {}
    form: Switch = ""
    for stem, group in groups.items():
        parts = _experts(group) if expert_of_switch(stem[1], 0) else None
        if parts is None:
            found[stem] = group
            continue
        form = "switch" if len(group.found["down"].tensor.shape) == 3 else "switch-rows"
        for at, held in enumerate(parts):
            name = (stem[0], expert_of_switch(stem[1], at) or "")
            if name in groups:
                raise IncompleteAdapter("one expert has two adapters", path=group.file, key=stem[1])
            found[name] = Group(name, group.file, held)
    return found, form


def _experts(group: Group) -> list[dict[str, Found]] | None:
    """The pair of each expert, views of those of all; None for what is no pair of MLX'."""
    down, up = group.found.get("down"), group.found.get("up")
    if not down or not up or down.cut.row.family != FAMILY or len(up.tensor.shape) != 3:
        return None
    count, rows, rank = up.tensor.shape
    shape = down.tensor.shape
    if len(group.found) > 2 or shape[:-1] not in ((count, rank), (count * rank,)) or not up.tensor.numel:
        raise IncompleteAdapter(
            f"experts' factors of {list(shape)} and {list(up.tensor.shape)} do not belong together",
            path=group.file,
            key=down.key,
            found=sorted(group.found),
            hint="mlx-lm has lora_a [experts, rank, in] and lora_b [experts, out, rank]",
        )
    downs = down.tensor.reshape(count * rank, shape[-1])
    ups = up.tensor.reshape(count * rows, rank)
    return [
        {
            "down": _straight(down, downs.rows(at * rank, (at + 1) * rank)),
            "up": _straight(up, ups.rows(at * rows, (at + 1) * rows)),
        }
        for at in range(count)
    ]


def _straight(found: Found, tensor: LazyTensor) -> Found:
    """One expert's factor, which MLX does not transpose as it does a linear layer's."""
    return found._replace(tensor=tensor, cut=found.cut._replace(row=found.cut.row._replace(turned=False)))
