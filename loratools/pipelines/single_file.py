"""A pipeline folder as one checkpoint under the LDM names, as web UIs load it: the same bytes, renamed and fused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loratools.adapters.factors import transposed
from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.naming import Naming, Placement, skeleton
from loratools.architectures.registry import architecture
from loratools.architectures.vae import VAE_ATTENTION, VAE_ORIGINAL
from loratools.bases.checkpoint import open_checkpoint
from loratools.bases.weights import Base
from loratools.errors import UnsupportedFile
from loratools.tensors.lazy import LazyTensor, stack_rows
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.source import TensorSource
from loratools.tensors.writer import Written, write

SINGLE_FILES = ("sd1", "sd2", "sdxl")
"""The architectures whose single files are written."""
VAE_PREFIX = "first_stage_model."


def export_single_file(folder: Path, out: Path, architecture_id: str, *, overwrite: bool = False) -> Written:
    """Write the pipeline in `folder` as one safetensors file at `out`, whose dtypes are the pipeline's.

    Raises UnsupportedFile for an architecture without single files and for a weight that the tables do not know.
    """
    if architecture_id not in SINGLE_FILES:
        raise UnsupportedFile(f"{architecture_id} has no single-file naming", hint=f"one of {', '.join(SINGLE_FILES)}")
    table = architecture(architecture_id)
    checkpoint = open_checkpoint(folder)
    tensors: dict[str, LazyTensor] = {}
    inputs = list(checkpoint.files)
    for component, source in checkpoint.base.parts:
        known = table.by_name[component or ""]
        tensors |= dict(_component(checkpoint.base, table, known, source))
    vae = next(iter(sorted((folder / "vae").glob("*.safetensors"))), None)
    if vae is not None:
        source = open_safetensors(vae)
        inputs += source.files
        tensors |= dict(_vae(source))
    return write(out, tensors, {"format": "pt"}, inputs=inputs, overwrite=overwrite)


def _component(
    base: Base, table: Architecture, known: Component, source: TensorSource
) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors of one component under the names of single files."""
    held = {
        (native.placement.paths[0], native.is_bias): native.tensor
        for name, native in base.natives(table)
        if name == known.name and native.source is source
    }
    placed = {native.key for name, native in base.natives(table) if name == known.name and native.source is source}
    for key in source:
        if key not in placed and not key.endswith("position_ids"):
            raise UnsupportedFile(f"no table knows {key!r} of {known.name}", path=source.name, key=key)
    for placement in _single(known).placements():
        prefix = known.checkpoint[0]
        for is_bias, native in ((False, placement.weight_key), (True, placement.bias_key)):
            found = [held[path, is_bias] for path in placement.paths if (path, is_bias) in held]
            if native is not None and len(found) == len(placement.paths):
                yield prefix + native, _laid_out(found, placement, is_bias=is_bias)


def _single(known: Component) -> Naming:
    """The naming that single files use: LDM's, open_clip's, or transformers' own with its `text_model.`."""
    return known.naming("ldm") or known.naming("open_clip") or known.namings[0]


def _laid_out(parts: list[LazyTensor], placement: Placement, *, is_bias: bool) -> LazyTensor:
    whole = parts[0] if len(parts) == 1 else stack_rows(parts)
    if placement.layout == "transpose" and not is_bias:
        return transposed(whole)
    return whole.swap_halves() if placement.layout == "swap_halves" else whole


def _vae(source: TensorSource) -> Iterator[tuple[str, LazyTensor]]:
    for key in source:
        path, _, leaf = key.rpartition(".")
        placement = VAE_ORIGINAL.at_canonical(path)
        if placement is None:
            raise UnsupportedFile(f"no table knows {key!r} of the VAE", path=source.name, key=key)
        tensor = source[key]
        if leaf == "weight" and skeleton(placement.native)[0][-1] in VAE_ATTENTION and len(tensor.shape) == 2:
            tensor = tensor.reshape(*tensor.shape, 1, 1)
        yield f"{VAE_PREFIX}{placement.native}.{leaf}", tensor
