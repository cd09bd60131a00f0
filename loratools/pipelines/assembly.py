"""A single file and a configuration together: the pipeline folder that they make, checked before a byte is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from loratools.architectures.architecture import Architecture
from loratools.bases.checkpoint import Checkpoint, WeightsFile, open_checkpoint
from loratools.bases.companions import companion
from loratools.bases.pipeline_index import OPTIONAL, components_of, has_weights, is_component
from loratools.bases.variants import variant_of
from loratools.bases.weights import open_base
from loratools.errors import ArchitectureMismatch, Unavailable, WrongRole
from loratools.pipelines.expected import LIBRARIES, expected_shapes
from loratools.pipelines.settings import Settings
from loratools.pipelines.unpack import Unpacked
from loratools.tensors.header import canonical_order
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import MemoryTensors, TensorSource

_ROOT = "text_model."
_NAMES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
_SHOWN = 4


@dataclass(frozen=True)
class Assembly:
    """A pipeline folder to be: its weights as a checkpoint, its index, what was left out, what should be known."""

    checkpoint: Checkpoint
    index: Mapping[str, Any]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def assemble(file: Checkpoint, unpacked: Unpacked, table: Architecture, settings: Settings) -> Assembly:
    """Put the components of a file under a configuration.

    Components that the file lacks come with their weights from the folder of the configuration, if it has them.
    Raises ArchitectureMismatch where names or shapes disagree, Unavailable where a needed component is nowhere.
    """
    source = file.weights[0].part
    index = dict(settings.index)
    weights: list[WeightsFile] = []
    parts: list[tuple[str | None, TensorSource]] = []
    left = list(unpacked.left_out)
    told: list[str] = []
    donor = _Donor(settings)
    for component in components_of(index):
        library, class_name = index[component]
        held = unpacked.components.get(component)
        if held is not None and library in LIBRARIES:
            expected = expected_shapes(library, class_name, settings.configs[component])
            tensors, spare = _fitted(file.name, component, held, expected, table)
            left += [f"{component}: {len(spare)} tensors that only checkpoints have ({spare[0]}, …)"] if spare else []
            part = _renamed(source, tensors)
            weights.append(WeightsFile(f"{component}/{_NAMES[library]}", part, tuple(tensors), part.metadata))
            parts.append((component, part))
        elif has_weights(component):
            found = donor.weights(component)
            if found:
                weights += found
                parts += {id(item.part): (component, item.part) for item in found}.values()
                told.append(f"{component} is not in the file: taken from {settings.folder}")
            elif component in OPTIONAL:
                index[component] = [None, None]
                left.append(f"{component}: not in the file")
            else:
                raise _nowhere(file.name, component)
    homeless = [name for name in unpacked.components if not is_component(name, index.get(name))]
    if homeless:
        raise ArchitectureMismatch(
            f"the configuration has no place for {', '.join(homeless)} of the file", path=file.name
        )
    if "requires_safety_checker" in index and "safety_checker" not in components_of(index):
        index["requires_safety_checker"] = False
    base = replace(open_base(file.name, parts), candidates=(table.id,))
    checkpoint = Checkpoint(file.name, True, tuple(weights), {}, base)
    return Assembly(checkpoint, index, tuple(left), tuple(told))


class _Donor:
    """The weights beside a configuration, opened when they are first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.folder
        self._opened: Checkpoint | None = None

    def weights(self, component: str) -> list[WeightsFile]:
        """The files of one component, the plain ones where there are variants; none where the folder has none."""
        if self._folder is None:
            return []
        if self._opened is None:
            try:
                self._opened = open_checkpoint(self._folder)
            except WrongRole:  # configurations alone, which is what most such folders hold
                self._folder = None
                return []
        found = [item for item in self._opened.weights if item.folder == component]
        first = found[0].part if found else None
        return [_as_plain(item) for item in found if item.part is first]


def _as_plain(item: WeightsFile) -> WeightsFile:
    """The file under the name of plain weights: what it joins has no variants."""
    variant = variant_of(item.name)
    if variant is None or item.index:
        return item
    return replace(item, name=item.name.replace(f".{variant}.", "."))


def _fitted(
    name: str,
    component: str,
    held: Mapping[str, LazyTensor],
    expected: Mapping[str, tuple[int, ...]],
    table: Architecture,
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The tensors in the shapes of the configuration, and the keys of those that only checkpoints have."""
    found: dict[str, LazyTensor] = {}
    missing: list[str] = []
    for key, shape in expected.items():
        ours = key if key in held else f"{_ROOT}{key}"
        if ours not in held:
            missing += [key] if companion(key) not in ("positions", "tied") else []
            continue
        tensor = held[ours]
        if tensor.shape != shape and _bare(tensor.shape) != _bare(shape):
            raise ArchitectureMismatch(
                f"{component} has a weight {list(tensor.shape)} where its configuration has {list(shape)}",
                path=name,
                key=f"{component}.{ours}",
                hint="--config DIR names a pipeline folder with the configuration of this model",
                expected=list(shape),
                found=list(tensor.shape),
            )
        found[ours] = tensor.reshape(*shape)
    spare = [key for key in held if key not in found]
    known = table.by_name.get(component)
    extra = [key for key in spare if known is None or known.namings[0].at_canonical(key.rpartition(".")[0])]
    if missing or extra:
        raise _disagreement(name, component, missing, extra)
    return {key: found[key] for key in canonical_order({key: (t.dtype, t.shape) for key, t in found.items()})}, spare


def _bare(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without its ones: a 1×1 convolution is a matrix."""
    return tuple(extent for extent in shape if extent != 1)


def _disagreement(name: str, component: str, missing: list[str], extra: list[str]) -> ArchitectureMismatch:
    told = [f"the file lacks {len(missing)} weights of {component} that its configuration has"] if missing else []
    told += [f"the configuration of {component} has no place for {len(extra)} weights of the file"] if extra else []
    return ArchitectureMismatch(
        "; ".join(told),
        path=name,
        key=f"{component}.{(missing or extra)[0]}",
        hint="--config DIR names a pipeline folder with the configuration of this model",
        missing=missing[:_SHOWN],
        unexpected=extra[:_SHOWN],
    )


def _nowhere(name: str, component: str) -> Unavailable:
    return Unavailable(
        f"the file holds no {component}",
        path=name,
        hint=f"--config DIR names a pipeline folder whose {component} is taken, weights and all",
    )


def _renamed(source: TensorSource, tensors: Mapping[str, LazyTensor]) -> MemoryTensors:
    """Tensors under other names that still know the file they lie in."""
    found = MemoryTensors(tensors, {"format": "pt"}, name=source.name)
    found.files = source.files
    return found
