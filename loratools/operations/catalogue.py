"""What is supported, read from the registries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loratools.architectures.registry import ARCHITECTURES
from loratools.formats.dialects import DIALECTS
from loratools.formats.registry import FORMATS


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A table of the registries; `rows` are plain values. `read` are the key grammars that are read."""

    schema: str
    rows: tuple[dict[str, Any], ...]
    read: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        found = {"schema": self.schema, "results": list(self.rows)}
        return found | ({"read": list(self.read)} if self.read else {})


def supported_formats() -> Catalogue:
    """Every format that can be written, with its readers, its place for alpha and the kinds it holds; and what is read.

    `written` of what is read is the id of a format, "as it was" (`--to original`) or "refused".
    """
    rows = tuple(
        {"id": row.id, "title": row.title, "readers": list(row.readers), "alpha": row.alpha, "kinds": list(row.kinds)}
        for row in FORMATS
    )
    read = tuple(
        {"id": row.id, "title": row.title, "writers": list(row.writers), "key": row.key, "written": row.written}
        for row in DIALECTS
    )
    return Catalogue("loratools.formats/1", rows, read)


def supported_architectures() -> Catalogue:
    """Every architecture with its components, namings and variants."""
    rows = tuple(
        {
            "id": row.id,
            "title": row.title,
            "components": {item.name: [naming.name for naming in item.namings] for item in row.components},
            "variants": [variant.name for variant in row.variants],
            "family": list(row.family),
        }
        for row in ARCHITECTURES
    )
    generic = {
        "id": "llm",
        "title": "Any transformer with a PEFT adapter: names pass through",
        "components": {"model": ["as it is"]},
        "variants": [],
        "family": ["llm-*"],
    }
    return Catalogue("loratools.architectures/1", (*rows, generic))
