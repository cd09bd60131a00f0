"""Open an adapter: parsed, lazy, and ready for every verb."""

from __future__ import annotations

from dataclasses import dataclass

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.kind import kind_of
from loratools.architectures.architecture import Architecture
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.errors import WrongRole
from loratools.formats.opening import Opened, Reference
from loratools.formats.parse import Reading, parse
from loratools.operations.references import open_reference


@dataclass(frozen=True)
class Lora:
    """An adapter file, folder or mapping that has been parsed; no weight has been read.

    `architecture` is the one id that keys, shapes, metadata or the caller settle, or None; `candidates` all that fit.
    """

    reading: Reading

    @property
    def name(self) -> str:
        """The reference it was opened from."""
        return self.reading.opened.name

    @property
    def adapter_set(self) -> AdapterSet:
        """The set as the first candidate reads it."""
        return self.reading.adapters

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Every adapter: target, kind, lazy factors by role, alpha and scale."""
        return self.reading.adapters.adapters

    @property
    def architecture(self) -> str | None:
        """The settled architecture id, or None."""
        return self.reading.settled

    @property
    def candidates(self) -> tuple[str, ...]:
        """Every architecture id that fits, likeliest first."""
        return self.reading.adapters.architectures

    @property
    def format(self) -> str:
        """The key grammar."""
        return self.reading.adapters.dialect.format

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds found, sorted; DoRA adds "dora"."""
        return tuple(sorted({name for item in self.adapters for name in kind_of(item.kind).kinds(item.factors)}))

    @property
    def components(self) -> tuple[str, ...]:
        """The components with adapters, in file order."""
        return tuple(dict.fromkeys(item.target.component for item in self.adapters))


def open_lora(reference: Reference | Lora, *, arch: str | None = None, unsafe_pickle: bool = False) -> Lora:
    """Open and parse an adapter; raises WrongRole for what is none, and the errors of tensors/ and formats/."""
    if isinstance(reference, Lora):
        if arch is None or arch == reference.architecture:
            return reference
        return Lora(parse(reference.reading.opened, arch=arch))
    opened = open_reference(reference, unsafe_pickle=unsafe_pickle)
    if opened.layout == "pipeline":
        raise _wrong_role(opened)
    try:
        return Lora(parse(opened, arch=arch))
    except WrongRole as error:
        if error.key is not None:  # it has said what the file is
            raise
        raise _wrong_role(opened) from error


def _wrong_role(opened: Opened) -> WrongRole:
    """The refusal of what holds no adapter, saying what it is instead."""
    if opened.layout == "pipeline":
        what = "a pipeline"
    else:
        from loratools.bases.identify import identify  # what is an adapter needs none of its tables

        shapes = {key: part.source[key].shape for part in opened.parts for key in part.source}
        found = identify(shapes)
        what = {"base": "a base model", "vae": "a VAE", "embedding": "an embedding", "controlnet": "a ControlNet"}.get(
            found.role if found else "", ""
        )
    message = f"no adapter, but {what}" if what else "no adapter weights were found"
    return WrongRole(message, path=opened.name, hint="loratools inspect tells what the file is")


def tables(lora: Lora) -> tuple[Architecture, ...]:
    """The architectures that the file may be: the settled one, else every candidate; none for the generic one."""
    ids = (lora.architecture,) if lora.architecture else lora.candidates
    known = {item.id for item in ARCHITECTURES}
    return tuple(architecture(name) for name in ids if name in known)
