"""An adapter set that an operation made, as files: spelt as the file that it came from was, or in a format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.recast import fold
from loratools.architectures.architecture import Architecture
from loratools.formats.alpha_tensor import is_plain
from loratools.formats.alphas import FREE_KEYS
from loratools.formats.format import Options
from loratools.formats.original import ORIGINAL_KEY, Original, describe, restore
from loratools.formats.registry import format_of
from loratools.formats.render import GROUPS_KEY, Rendered, render
from loratools.formats.scale_tensor import SCALES_KEY
from loratools.formats.settle import scaled_in_factors
from loratools.formats.suffixes import WRITTEN
from loratools.formats.writers import writers
from loratools.model import Dialect, Spelling
from loratools.operations.header.hashes import HASH_KEYS
from loratools.operations.lora import Lora, tables
from loratools.operations.outputs.provenance import PENDING, PROVENANCE_KEY

DYNAMIC = "Dynamic"
"""What sd-scripts writes for a rank that differs from layer to layer."""

_HASHES = dict(zip(HASH_KEYS, (PENDING, PENDING[:8], f"0x{PENDING}"), strict=True))
_SPOKEN = (PROVENANCE_KEY, ORIGINAL_KEY, GROUPS_KEY, SCALES_KEY)


@dataclass(frozen=True)
class LaidOut:
    """The files, the word for their format, and whether they are a folder."""

    rendered: Rendered
    format: str
    folder: bool


def laid_out(
    made: AdapterSet,
    like: Lora,
    source: AdapterSet,
    table: Architecture | None,
    *,
    to: str | None = None,
    allow_lossy: bool = False,
) -> LaidOut:
    """`made` in the format `to`, or spelt as `like` was read (whose set, bound to `table`, is `source`).

    Metadata that speaks of the old factors is dropped, and the ranks that trainers note are renewed. Raises
    NotRepresentable for what the format or the spelling cannot hold.
    """
    made = replace(made, metadata=renewed(made.metadata, made.adapters))
    if to is not None:
        form = format_of(to)
        settled = scaled_in_factors(made, form)
        by_component = writers(settled, form, table, Options(None), tables(like))
        return LaidOut(render(settled, form, by_component, allow_lossy=allow_lossy), form.id, form.folder)
    folder = like.reading.opened.layout in ("mlx", "peft")
    original = dialect_record(source, table, folder=folder, path=like.name)
    if original.alpha == "none":  # a file that has no alpha has no place for one
        made = replace(made, adapters=tuple(item if is_plain(item) else fold(item) for item in made.adapters))
    return LaidOut(restore(made, original, table, allow_lossy=allow_lossy), original.format, folder)


def dialect_record(source: AdapterSet, table: Architecture | None, *, folder: bool, path: str) -> Original:
    """How a set was spelt, without the configurations and metadata that state ranks: those are written anew."""
    bare = {key: value for key, value in source.metadata.items() if key != ORIGINAL_KEY}
    found = describe(replace(source, metadata=bare), table, folder=folder, path=path)
    spellings = {name: _with_lora(spelling, source.dialect) for name, spelling in found.spellings.items()}
    return replace(found, spellings=spellings, metadata={}, configs={}, unfolded={})


def _with_lora(spelling: Spelling, dialect: Dialect) -> Spelling:
    """The spelling with suffixes for a LoRA's factors, which a file of LoHa, LoKr or AdaLoRA has not."""
    family = WRITTEN["peft" if dialect.alpha == "config" else "kohya"]
    if "lora.singular" in spelling.suffixes:
        # AdaLoRA's factors are bare parameters, a LoRA's two layers: under the others' names PEFT would find none.
        pruned = {f"adalora.{role}": spelling.suffixes[f"lora.{role}"] for role in ("down", "up")}
        plain = {name: family[name] for name in ("lora.down", "lora.up")}
        return replace(spelling, suffixes={**spelling.suffixes, **pruned, **plain})
    if {"lora.down", "lora.up"} <= set(spelling.suffixes):
        return spelling
    added = {name: family[name] for name in ("lora.down", "lora.up", "lora.up_bias") if name in family}
    if dialect.alpha == "tensor":
        added["alpha"] = family["alpha"]
    return Spelling(spelling.prefix, spelling.naming, spelling.flat, {**added, **spelling.suffixes})


def renewed(metadata: Mapping[str, str], adapters: Sequence[Adapter]) -> dict[str, str]:
    """Metadata without what speaks of other factors, and with the ranks and alphas that trainers note as they are now.

    Only notes that are there are renewed: `ss_network_dim`, `ss_network_alpha`, and `conv_dim` and `conv_alpha` in
    `ss_network_args`.
    """
    found = {key: value for key, value in metadata.items() if key not in (*_SPOKEN, *FREE_KEYS)}
    found |= {key: text for key, text in _HASHES.items() if key in found}  # of the length that they will have
    plain = [item for item in adapters if item.kind == "lora" and not _is_convolution(item)]
    if "ss_network_dim" in found and plain:
        found["ss_network_dim"] = _agreed([str(item.rank) for item in plain])
    if "ss_network_alpha" in found and plain:
        found["ss_network_alpha"] = _agreed([_alpha(item) for item in plain])
    convolutions = [item for item in adapters if item.kind == "lora" and _is_convolution(item)]
    if "ss_network_args" in found and convolutions:
        found["ss_network_args"] = _arguments(found["ss_network_args"], convolutions)
    return found


def _is_convolution(item: Adapter) -> bool:
    down = item.factors.get("down")
    return down is not None and any(extent > 1 for extent in down.shape[2:])


def _alpha(item: Adapter) -> str:
    value = item.rank if item.alpha.value is None else float(item.alpha.value)
    return str(value)


def _agreed(words: Sequence[str]) -> str:
    return words[0] if len(set(words)) == 1 else DYNAMIC


def _arguments(raw: str, convolutions: Sequence[Adapter]) -> str:
    """`ss_network_args` with the convolutions' rank and alpha, where it notes them and can be read."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return raw  # a note of somebody else's, for people
    if not isinstance(found, dict):
        return raw
    if "conv_dim" in found:
        found["conv_dim"] = _agreed([str(item.rank) for item in convolutions])
    if "conv_alpha" in found:
        found["conv_alpha"] = _agreed([_alpha(item) for item in convolutions])
    return json.dumps(found)
