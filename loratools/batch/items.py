"""Items: the command line of every row, where its output goes, and the key it is known by when a run is resumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loratools.batch.manifest import Row
from loratools.batch.verbs import BatchVerb
from loratools.errors import OutputRefused, UsageError, nearest
from loratools.hub.references import is_remote
from loratools.operations.merging.scales import weighted

_FIELD = re.compile(r"\{([^{}]*)\}")


class Twin(NamedTuple):
    """An item that is done, and an item that is to be done and holds the same: what is known of both.

    `words` and `output` are the done one's, with its size, time (ns) and SHA-256 as it was made; `document` is the JSON
    text of what was printed. `names` are those of both items' input files as records have them, `files` all that both
    are made of.
    """

    words: tuple[str, ...]
    output: str
    size: int
    time: int
    sha256: str
    document: str
    names: tuple[tuple[str, ...], tuple[str, ...]]
    files: tuple[tuple[str, int, int], ...]


class Item(NamedTuple):
    """One command: its number in the manifest, its words, its output if it writes one, and the first input's path.

    `begun` says that it was begun before, when nothing stood where its output goes: what stands there now is its own.
    `identify` asks for the identity of its adapters alone; with a `twin` its output is a copy, if that will do.
    """

    number: int
    key: str
    words: tuple[str, ...]
    output: str | None
    source: str
    begun: bool = False
    identify: bool = False
    twin: Twin | None = None


def items(
    verb: BatchVerb,
    rows: Iterable[Row],
    *,
    options: Sequence[str] = (),
    output: str | None = None,
    constants: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Iterator[Item]:
    """The items of the rows, in order; a row that stands twice is one item.

    `output` is a pattern: {stem}, {name}, {parent}, {number} of the first listed input, and every column of the row.
    `constants` fill columns that rows lack. A column that begins with `--` is an option of that row. Raises UsageError
    for a row without its inputs, or two that write one output, OutputRefused for one outside its pattern's folder.
    """
    _check_pattern(verb, output)
    seen: set[str] = set()
    outputs: dict[str, int] = {}
    for number, bare in enumerate(rows):
        row = {**(constants or {}), **bare}
        inputs = [_inputs(verb, column, row, number, home) for column in verb.columns]
        place = _place(verb, row, inputs, number, output)
        own = [word for name, value in row.items() if name.startswith("--") for word in _option(name, value)]
        words = [verb.name, *(word for column in inputs for word in column)]
        if place is not None:
            words += [place] if verb.output == "positional" else ["-o", place]
        words += [*options, *own]
        key = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
        if key in seen:
            continue
        seen.add(key)
        if place is not None and outputs.setdefault(place, number) != number:
            raise UsageError(f"rows {outputs[place] + 1} and {number + 1} would write one file", path=place)
        yield Item(number, key, tuple(words), place, _listed(verb, inputs))


def _listed(verb: BatchVerb, inputs: list[list[str]]) -> str:
    """The path that an item is named by: of several adapters the first, without its scale."""
    first = inputs[verb.columns.index(verb.listed)][0]
    return weighted(first)[0] if verb.many else first


def _check_pattern(verb: BatchVerb, output: str | None) -> None:
    if verb.output and output is None:
        raise UsageError(f"{verb.name} writes files", hint="-o 'out/{stem}.safetensors'")
    if output is not None and not verb.output:
        raise UsageError(f"{verb.name} writes no files", hint="--results keeps what it says")


def _inputs(verb: BatchVerb, column: str, row: Row, number: int, home: Path | None) -> list[str]:
    value = row.get(column)
    if value is None or value in ("", []):
        known = [name for name in row if not name.startswith("--")]
        raise UsageError(
            f"row {number + 1} has no {column!r}",
            hint=nearest(column, known) or f"columns: {', '.join(known)}; --set {column}=… fills it in every row",
        )
    several = value if isinstance(value, list) else str(value).split(";") if verb.many == column else [value]
    return [_resolved(str(one), home) for one in several]


def _resolved(path: str, home: Path | None) -> str:
    if is_remote(path):
        return path
    found = path if home is None or Path(path).is_absolute() else str(home / path)
    return f"./{found}" if found.startswith("-") else found


def _option(name: str, value: Any) -> list[str]:
    if value in (True, "true"):
        return [name]
    return [] if value in (False, None, "false") else [name, str(value)]


def _place(verb: BatchVerb, row: Row, inputs: list[list[str]], number: int, output: str | None) -> str | None:
    if not verb.output or output is None:
        return None
    named = Path(_listed(verb, inputs))
    stem = named.name if named.is_dir() else named.stem
    fields = {
        **{name: str(value) for name, value in row.items() if not name.startswith("--")},
        "stem": stem, "name": named.name, "parent": named.parent.name, "number": f"{number:06d}",
    }  # fmt: skip
    try:
        found = row.get("output") or _FIELD.sub(lambda match: fields[match[1]], output)
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(f"the pattern {output!r} cannot be filled in: {error}", hint=f"there are {known}") from error
    root = os.path.dirname(output.partition("{")[0])  # noqa: PTH120 (what is before the first field may end in a slash)
    place = os.path.normpath(found)
    if not Path(place).absolute().is_relative_to(Path(os.path.normpath(root)).absolute()):
        raise OutputRefused(f"row {number + 1} would write outside {root or 'this folder'}", path=place)
    return place
