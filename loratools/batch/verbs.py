"""What an item of each verb is: which columns name its inputs, and how its output stands in a command line."""

from __future__ import annotations

from typing import NamedTuple

from loratools.errors import UsageError, nearest


class BatchVerb(NamedTuple):
    """A verb: its input columns in the order of its arguments, the one that a list of files fills, its output.

    `output` is "positional", "option" (-o), or "" where nothing is written. `many` is a column that may name several,
    between semicolons or as a JSON list.
    """

    name: str
    columns: tuple[str, ...]
    listed: str
    output: str = ""
    many: str = ""


VERBS: tuple[BatchVerb, ...] = (
    BatchVerb("convert", ("input",), "input", "positional"),
    BatchVerb("extract", ("base", "tuned"), "tuned", "option"),
    BatchVerb("hash", ("input",), "input"),
    BatchVerb("inspect", ("input",), "input"),
    BatchVerb("merge", ("base", "lora"), "lora", "option", "lora"),
    BatchVerb("resize", ("input",), "input", "positional"),
    BatchVerb("validate", ("pipeline", "lora"), "lora", "", "lora"),
)


def batch_verb(name: str) -> BatchVerb:
    """The verb of that name; UsageError with the nearest where there is none."""
    names = [verb.name for verb in VERBS]
    if name not in names:
        raise UsageError(f"batch does not do {name!r}", hint=nearest(name, names) or f"one of {', '.join(names)}")
    return VERBS[names.index(name)]
