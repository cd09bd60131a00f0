"""A pipeline as one checkpoint under the LDM names, as web UIs load it: the same bytes, renamed and fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from loratools.adapters.factors import transposed
from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.naming import Naming, Placement
from loratools.architectures.registry import architecture
from loratools.architectures.vae import VAE_ATTENTION, VAE_ORIGINAL
from loratools.bases.checkpoint import Checkpoint, open_checkpoint
from loratools.bases.companions import companion
from loratools.bases.variants import files_of, variants_of
from loratools.bases.weights import Base
from loratools.errors import UnsupportedFile
from loratools.tensors.lazy import LazyTensor, stack_rows
from loratools.tensors.source import TensorSource
from loratools.tensors.writer import Written, write

SINGLE_FILES = ("sd1", "sd2", "sdxl")
"""The architectures whose single files are written."""
VAE_PREFIX = "first_stage_model."
VAE = "vae"

TensorOf = Callable[[TensorSource, str], LazyTensor]


def export_single_file(folder: Path, out: Path, architecture_id: str, *, overwrite: bool = False) -> Written:
    """Write the pipeline in `folder` as one safetensors file at `out`, whose dtypes are the pipeline's.

    Raises UnsupportedFile for an architecture without single files and for a weight that the tables do not know.
    """
    require_single_file(architecture_id)
    checkpoint = open_checkpoint(folder)
    tensors = pack(checkpoint, architecture(architecture_id))
    return write(out, tensors, {"format": "pt"}, inputs=checkpoint.files, overwrite=overwrite)


def require_single_file(architecture_id: str | None) -> None:
    """Raise UnsupportedFile for an architecture without single files."""
    if architecture_id not in SINGLE_FILES:
        raise UnsupportedFile(
            f"{architecture_id or 'an unknown architecture'} has no single-file naming",
            hint=f"one of {', '.join(SINGLE_FILES)}",
        )


def pack(checkpoint: Checkpoint, table: Architecture, tensor_of: TensorOf | None = None) -> dict[str, LazyTensor]:
    """The tensors of a pipeline folder under the names of single files, but for those of `homeless` components; of
    several variants the first is taken.

    `tensor_of` gives another tensor for one of a source, such as the merged one. Raises UnsupportedFile for a weight
    that the tables do not know.
    """
    take = tensor_of or (lambda source, key: source[key])
    variant = next(iter(variants_of(checkpoint)), None)
    tensors: dict[str, LazyTensor] = {}
    for component, items in files_of(checkpoint, variant).items():
        for source in {id(item.part): item.part for item in items}.values():
            if component == VAE:
                tensors |= dict(_vae(source, take))
            elif component in table.by_name:
                tensors |= dict(_component(checkpoint.base, table, table.by_name[component], source, take))
    return tensors


def homeless(checkpoint: Checkpoint, table: Architecture) -> tuple[str, ...]:
    """The components of a pipeline folder whose weights a single file has no place for."""
    folders = dict.fromkeys(item.folder for item in checkpoint.weights)
    return tuple(folder for folder in folders if folder != VAE and folder not in table.by_name)


def _component(
    base: Base, table: Architecture, known: Component, source: TensorSource, take: TensorOf
) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors of one component under the names of single files."""
    natives = [native for name, native in base.natives(table) if name == known.name and native.source is source]
    held = {
        (path, native.is_bias): take(source, native.key) for native in natives for path in native.placement.paths[:1]
    }
    placed = {native.key for native in natives}
    for key in source:
        if key not in placed and companion(key) != "positions":
            raise UnsupportedFile(f"no table knows {key!r} of {known.name}", path=source.name, key=key)
    for placement in _single(known).placements():
        prefix = known.checkpoint[0]
        weight = held.get((placement.paths[0], False))
        laid = placement.settled(weight.shape) if weight else placement
        for is_bias, native_key in ((False, placement.weight_key), (True, placement.bias_key)):
            found = [held[path, is_bias] for path in placement.paths if (path, is_bias) in held]
            if native_key is not None and len(found) == len(placement.paths):
                if laid is None:
                    raise UnsupportedFile(
                        f"the size of {placement.native} does not tell how its rows lie", path=source.name
                    )
                yield prefix + native_key, _laid_out(found, laid, is_bias=is_bias)


def _single(known: Component) -> Naming:
    """The naming that single files use: LDM's, open_clip's, the model's own, or transformers' with `text_model.`."""
    names = ("ldm", "open_clip", "original")
    return next((found for name in names if (found := known.naming(name)) is not None), known.namings[0])


def _laid_out(parts: list[LazyTensor], placement: Placement, *, is_bias: bool) -> LazyTensor:
    whole = parts[0] if len(parts) == 1 else stack_rows(parts)
    if placement.layout == "transpose" and not is_bias:
        return transposed(whole)
    return whole.swap_halves() if placement.layout == "swap_halves" else whole


def _vae(source: TensorSource, take: TensorOf) -> Iterator[tuple[str, LazyTensor]]:
    for key in source:
        path, _, leaf = key.rpartition(".")
        placement = VAE_ORIGINAL.at_canonical(path)
        if placement is None:
            raise UnsupportedFile(f"no table knows {key!r} of the VAE", path=source.name, key=key)
        tensor = take(source, key)
        if leaf == "weight" and placement.native.rpartition(".")[2] in VAE_ATTENTION and len(tensor.shape) == 2:
            tensor = tensor.reshape(*tensor.shape, 1, 1)
        yield f"{VAE_PREFIX}{placement.native}.{leaf}", tensor
