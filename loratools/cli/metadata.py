"""`loratools metadata`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loratools.cli import options
from loratools.cli.options import Function, Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit, write
from loratools.cli.text import human_bytes
from loratools.errors import UsageError

if TYPE_CHECKING:
    from loratools.operations.header.edit import Edited

WIDTH = 100  # characters of a value on a page; -v shows all
GROUPS = (
    ("modelspec.", "ModelSpec"),
    ("ss_", "training"),
    ("sshs_", "hashes"),
    ("loratools.", "loratools"),
    ("", "other"),
)


@click.group("metadata")
def command() -> None:
    """Read and change what a file says about itself.

    The header is written anew and the tensors are copied as bytes. A change goes to -o OUT, or --in-place into a
    complete new file that takes the old one's name. Hashes that the file states are computed anew, and what decides how
    the weights are read (an alpha, for example) is not changed. Inputs are .safetensors files.
    """


def places(function: Function) -> Function:
    """-o OUT or --in-place, of the commands that change something."""
    for option in (
        options.overwrite,
        click.option("--in-place", is_flag=True, help="Replace FILE by a complete new one."),
        click.option("-o", "--output", "out", type=click.Path(), metavar="OUT", help="The file to write."),
    ):
        function = option(function)
    return function


file = click.argument("path", metavar="FILE", type=click.Path())


@command.command("show")
@file
@speaks
def show(path: str, manner: Manner) -> None:
    """Every entry, the words that call it, and the keys that hold something private."""
    from loratools.operations.metadata import read_metadata

    emit(read_metadata(path).to_dict(), manner, view)


@command.command("get")
@file
@click.argument("key")
@speaks
def get(path: str, key: str, manner: Manner) -> None:
    """The value of KEY, as it is stored; exit code 2 where there is none."""
    from loratools.operations.metadata import get_metadata

    value = get_metadata(path, key)
    if manner.json:
        emit({"schema": "loratools.metadata/1", "path": path, "metadata": {key: value}}, manner, view)
    else:
        write(value + "\n")


@command.command("set")
@file
@click.argument("entries", metavar="KEY=VALUE...", nargs=-1, required=True)
@places
@speaks
def set_(path: str, entries: tuple[str, ...], manner: Manner, **where: Any) -> None:
    """Add entries, or give them other values."""
    from loratools.operations.metadata import set_metadata

    given = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals:
            raise UsageError(f"{entry!r} has no =", hint="for example modelspec.title='A style'")
        given[key] = value
    _edit(partial(set_metadata, path, given), where, manner)


@command.command("remove")
@file
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@places
@speaks
def remove(path: str, keys: tuple[str, ...], manner: Manner, **where: Any) -> None:
    """Take entries away."""
    from loratools.operations.metadata import remove_metadata

    _edit(partial(remove_metadata, path, keys), where, manner)


@command.command("strip")
@file
@click.option("--private", is_flag=True, help="What tells of persons and machines: paths, data, captions, comments.")
@click.option("--all", "everything", is_flag=True, help="Everything that is not needed to read the weights.")
@places
@speaks
def strip(path: str, manner: Manner, *, private: bool, everything: bool, **where: Any) -> None:
    """Take away what is private, or everything. Paths keep their last part, which names a model."""
    from loratools.operations.metadata import strip_metadata

    if private == everything:
        raise UsageError("what is to be stripped?", hint="--private or --all")
    _edit(partial(strip_metadata, path, everything=everything), where, manner)


@command.command("export")
@file
@speaks
def export(path: str, manner: Manner) -> None:  # noqa: ARG001 (JSON it is in every manner)
    """All entries as one JSON object, which `import` takes."""
    from loratools.operations.metadata import read_metadata

    write(json.dumps(dict(read_metadata(path).entries), indent=2, ensure_ascii=False, sort_keys=True) + "\n")


@command.command("import")
@file
@click.argument("document", metavar="JSON", type=click.Path())
@places
@speaks
def import_(path: str, document: str, manner: Manner, **where: Any) -> None:
    """Add the entries of a JSON object (- is stdin); hashes and records of loratools in it are left out."""
    from loratools.operations.metadata import set_metadata, settable

    given = settable(_entries(document))
    _edit(partial(set_metadata, path, given), where, manner)


def _entries(document: str) -> dict[str, Any]:
    from loratools.formats.configs import parse_json
    from loratools.formats.opening import read_config

    return parse_json(sys.stdin.buffer.read(), path="<stdin>") if document == "-" else read_config(Path(document))


def _edit(change: Callable[..., Edited], where: dict[str, Any], manner: Manner) -> None:
    with Progress("metadata", quiet=manner.quiet) as progress:
        done = change(**where, progress=progress)
    emit(done.to_dict(), manner, view_edit)


def view(page: Page, document: Document, manner: Manner) -> None:
    """The entries in groups, long values cut, then the words and what is private."""
    page.line(document["path"], strong=True)
    left = dict(document["metadata"])
    for prefix, title in GROUPS:
        held = {key: left.pop(key) for key in list(left) if key.startswith(prefix)}
        if held:
            page.line("")
            page.line(title)
            page.facts([(key, _cut(value, manner)) for key, value in sorted(held.items())])
    if not document["metadata"]:
        page.line("no metadata")
    page.notes(
        "words that call it", [f"{', '.join(item['words'])} ({item['source']})" for item in document["triggers"]]
    )
    page.notes("private (strip --private takes it away)", document["private"])


def _cut(value: str, manner: Manner) -> str:
    if manner.verbose or len(value) <= WIDTH:
        return value
    return f"{value[:WIDTH]}… ({len(value):,} characters; all with -v)"


def view_edit(page: Page, document: Document, manner: Manner) -> None:  # noqa: ARG001 (every view takes it)
    """What became of which key."""
    page.line(f"{document['path']}: {human_bytes(document['size'])}", strong=True)
    page.table(("key", "now"), document["changes"].items())
    page.notes("warnings", document["warnings"])
