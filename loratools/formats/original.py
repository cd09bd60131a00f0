"""The record of how a file was spelt, kept in the metadata of what it was converted to, so that the way back is exact.

It holds the dialect, and only where the dialect alone would not give a key, a shape or an alpha back, the exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.unfold import unfolded
from loratools.architectures.architecture import Architecture
from loratools.architectures.llm_namings import stacked_name
from loratools.errors import MalformedFile, NotRepresentable, UsageError
from loratools.formats.alpha_tensor import Stored
from loratools.formats.alphas import ABSENT
from loratools.formats.configs import DIFFUSERS_KEY, parse_json
from loratools.formats.format import PEFT_WEIGHTS, Format
from loratools.formats.kohya import KOHYA
from loratools.formats.mlx import MLX
from loratools.formats.record import damaged
from loratools.formats.render import Rendered, render
from loratools.formats.spell import Writer, dimensions_of, naming_for
from loratools.model import Spelling, Target
from loratools.tensors.lazy import LazyTensor

ORIGINAL_KEY = "loratools.original"
_TUPLES = "|"


@dataclass(frozen=True)
class Original:
    """What a file was before it was converted. `keys` and `shapes` are exceptions by the key that the dialect gives;
    `unfolded` are alpha and dtypes of layers that a fused spelling must bring to one scale, by target.
    """

    format: str
    folder: bool
    spellings: Mapping[str, Spelling]
    alpha: str
    alpha_dtype: str | None
    keys: Mapping[str, str]
    shapes: Mapping[str, list[int]]
    alphas: Mapping[str, tuple[str, list[int]] | None]
    targets: Mapping[str, list[Any]]
    metadata: Mapping[str, str]
    configs: Mapping[str, Mapping[str, Any]]
    had_format: bool = False
    unfolded: Mapping[str, list[Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as it stands in the metadata; empty exceptions are left out."""
        spellings = {
            name: [item.prefix, item.naming, item.flat, dict(item.suffixes)] for name, item in self.spellings.items()
        }
        fields = {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "spellings": spellings}
        return json.dumps(
            {k: v for k, v in fields.items() if v not in ({}, None)}, sort_keys=True, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, raw: str, *, path: object) -> Original:
        """The record of a file; raises MalformedFile where somebody broke it."""
        fields = parse_json(raw, path=path, key=ORIGINAL_KEY)
        wrong = damaged(fields)
        try:
            if wrong is not None:
                raise TypeError(wrong)  # noqa: TRY301 - one message for everything that is no record
            spellings = {name: Spelling(*item) for name, item in fields.pop("spellings").items()}
            empty: dict[str, Any] = {
                "keys": {},
                "shapes": {},
                "alphas": {},
                "targets": {},
                "metadata": {},
                "configs": {},
                "alpha_dtype": None,
            }
            return cls(spellings=spellings, **{**empty, **fields})
        except (KeyError, TypeError, AttributeError) as error:
            raise MalformedFile(
                f"the record of the original spelling is damaged ({error})", path=path, key=ORIGINAL_KEY
            ) from error

    @classmethod
    def of(cls, adapters: AdapterSet, *, path: object) -> Original:
        """The record that a set carries; UsageError where it was never converted."""
        raw = adapters.metadata.get(ORIGINAL_KEY)
        if raw is None:
            raise UsageError(
                "the file records no original spelling",
                path=path,
                hint="--to original is for files that loratools converted",
            )
        return cls.from_json(raw, path=path)


def as_format(record: Original) -> Format:
    """The recorded dialect as a format to write."""
    alpha: Any = "tensor" if record.alpha in ("tensor", "none") else record.alpha
    if record.alpha == "none" and record.folder and record.configs:
        alpha = "config"  # of kinds without an alpha, (IA)³ and OFT, whose configuration says other things
    return Format(
        record.format,
        "as it was",
        (),
        alpha,
        KOHYA.kinds,
        lambda *_: None,
        record.folder,
        ("",),
        absent=ABSENT.get(record.format),
        weights=MLX.weights if record.format == MLX.id else PEFT_WEIGHTS,
        recorded=True,
    )


def writers_of(
    record: Original, architecture: Architecture | None, *, known: tuple[Architecture, ...] = ()
) -> dict[str, Writer]:
    """component → Writer for the recorded spellings; 1×1 factors get the dimensions that the `known` tables state."""
    found = {}
    for name, spelling in record.spellings.items():
        component = architecture.by_name.get(name) if architecture else None
        found[name] = Writer(spelling, naming_for(component, spelling.naming), dimensions_of(known, name))
    return found


def target_of(record: Original, by_component: Mapping[str, Writer], component: str, path: str) -> Target:
    """The target that held a path: the dialect's, or the recorded exception."""
    exception = record.targets.get(f"{component}{_TUPLES}{path}")
    if exception and path in exception[0]:
        return Target(component, tuple(exception[0]), tuple(exception[1]))
    writer = by_component[component]
    # A naming of adapters alone has no name for what its file had not: a part that fusing filled up with zeros.
    return writer.target(component, path) if writer.names(path) else Target(component, (path,))


def describe(adapters: AdapterSet, architecture: Architecture | None, *, folder: bool, path: object) -> Original:
    """The record of a set as it was read. A set that carries a record keeps it: the first spelling is the original."""
    if ORIGINAL_KEY in adapters.metadata:
        return Original.of(adapters, path=path)
    dialect = adapters.dialect
    raw = {key: adapters.metadata[key] for key in (DIFFUSERS_KEY,) if key in adapters.metadata}
    configs = {component: dict(config) for component, config in adapters.configs.items()} if not raw else {}
    bare = Original(
        dialect.format, folder, dialect.spellings, dialect.alpha, dialect.alpha_dtype, {}, {}, {}, {}, raw, configs
    )
    # What other formats would make of 1×1 factors, so that every other shape becomes an exception.
    by_component = writers_of(bare, architecture, known=(architecture,) if architecture else ())
    keys: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    alphas: dict[str, tuple[str, list[int]] | None] = {}
    targets: dict[str, list[Any]] = {}
    for item in adapters.adapters:
        writer = by_component[item.target.component]
        for at in item.target.paths:
            if writer.placement(at).paths != item.target.paths:
                targets[f"{item.target.component}{_TUPLES}{at}"] = [item.target.paths, item.target.ratio]
        _exceptions(item, writer, keys, shapes)
        default = (dialect.alpha_dtype, ()) if dialect.alpha == "tensor" else None
        if item.alpha.stored != default and (item.alpha.stored is not None or item.rank is not None):
            alphas[item.target.name] = (
                None if item.alpha.stored is None else (item.alpha.stored[0], list(item.alpha.stored[1]))
            )
    had_format = "format" in adapters.metadata
    unequal = _unequal(adapters.adapters, architecture)
    return replace(
        bare, had_format=had_format, keys=keys, shapes=shapes, alphas=alphas, targets=targets, unfolded=unequal
    )


def _unequal(adapters: Sequence[Adapter], architecture: Architecture | None) -> dict[str, list[Any]]:
    """What fusing changes for good: alpha and dtypes of the parts of a group whose scales or dtypes are not all one."""
    if architecture is None:
        return {}
    fusing = {
        component.name: [it for it in component.namings if any(len(rule.canonical) > 1 for rule in it.rules)]
        for component in architecture.components
    }
    groups: dict[tuple[str, str], list[Adapter]] = {}
    for item in adapters:
        for naming in fusing[item.target.component]:
            found = naming.at_canonical(item.target.paths[0])
            if found and item.target.paths != found.paths:
                groups.setdefault((item.target.component, found.native), []).append(item)
    record: dict[str, list[Any]] = {}
    for members in groups.values():
        dtypes = [{role: tensor.dtype for role, tensor in item.factors.items()} for item in members]
        if all(item.scale.equals(members[0].scale) for item in members) and all(row == dtypes[0] for row in dtypes):
            continue
        for item, row in zip(members, dtypes, strict=True):
            record[item.target.name] = [None if item.alpha.value is None else str(item.alpha.value), row]
    return record


def _exceptions(item: Adapter, writer: Writer, keys: dict[str, str], shapes: dict[str, list[int]]) -> None:
    """What the dialect alone would spell otherwise than the file did."""
    origin = item.origin
    together = writer.stacked or writer.switched
    if origin is None or (together and stacked_name(writer.placement(item.target.paths[0]).native)):
        return  # an expert of a parameter has no key of its own
    for role, (key, tensor) in writer.by_role(item).items():
        if key != origin.keys[role]:
            keys[key] = origin.keys[role]
        if tensor.shape != origin.shapes[role]:
            shapes[key] = list(origin.shapes[role])
    if item.alpha.stored is not None and (key := writer.key(item, "alpha")) != origin.keys["alpha"]:
        keys[key] = origin.keys["alpha"]


def restore(
    adapters: AdapterSet, record: Original, architecture: Architecture | None, *, allow_lossy: bool
) -> Rendered:
    """The set in its original spelling: the dialect, then the exceptions, then the configurations word for word.

    Raises NotRepresentable for what was a GGUF file: --to gguf writes those.
    """
    if record.format == "gguf":
        origin = next((item.origin for item in adapters.adapters if item.origin), None)
        raise NotRepresentable(
            "a GGUF file is written by --to gguf alone",
            path=origin.file if origin else None,
            key=ORIGINAL_KEY,
            hint="--to gguf, which names the model anew",
        )
    by_component = writers_of(record, architecture)

    def stored(item: Adapter) -> Stored | None:
        found = record.alphas.get(item.target.name)
        return (found[0], tuple(found[1])) if found else (record.alpha_dtype, ()) if record.alpha_dtype else None

    def silent(item: Adapter) -> bool:
        return record.alphas.get(item.target.name, 0 if record.alpha == "tensor" else None) is None

    def finish(item: Adapter) -> Adapter:
        found = record.unfolded.get(item.target.name)
        return unfolded(item, None if found[0] is None else Fraction(found[0]), found[1]) if found else item

    rendered = render(
        adapters,
        as_format(record),
        by_component,
        target_of=lambda component, path: target_of(record, by_component, component, path),
        stored_alpha=stored,
        silent_alpha=silent,
        finish=finish,
        allow_lossy=allow_lossy,
    )
    dropped = (ORIGINAL_KEY, *(() if record.had_format else ("format",)))
    files = []
    for file in rendered.files:
        tensors = {
            record.keys.get(key, key): _shaped(tensor, record.shapes.get(key)) for key, tensor in file.tensors.items()
        }
        if len(tensors) < len(file.tensors):
            raise MalformedFile("the record of the original spelling gives two tensors one key", key=ORIGINAL_KEY)
        metadata = {key: value for key, value in file.metadata.items() if key not in dropped} | dict(record.metadata)
        config = record.configs.get(file.name) or record.configs.get("") or file.config
        files.append(
            replace(file, tensors=tensors, metadata=metadata, config=config if file.config is not None else None)
        )
    return replace(rendered, files=tuple(files))


def _shaped(tensor: LazyTensor, shape: list[int] | None) -> LazyTensor:
    return tensor.reshape(*shape) if shape is not None and prod(shape) == tensor.numel else tensor
