"""A command over several references: each is answered in its turn, and one that fails leaves its error in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from loratools.cli.failures import print_message
from loratools.cli.options import Function, Manner
from loratools.cli.render import Document, Page, emit, write
from loratools.errors import LoratoolsError, UsageError
from loratools.tensors.source import LocalFile

_LIMIT = 64 << 20
View = Callable[[Page, Document, Manner], None]


def references(metavar: str) -> Callable[[Function], Function]:
    """The argument of several references, `-` among them for those that stdin lists, and --from-file."""

    def decorated(function: Function) -> Function:
        function = click.option(
            "--from-file",
            metavar="LIST",
            type=click.Path(),
            expose_value=False,
            callback=_keep,
            help="One path a line.",
        )(function)
        return click.argument("refs", metavar=metavar, nargs=-1)(function)

    return decorated


def _keep(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.meta["loratools.list"] = value


def expanded(refs: Sequence[str]) -> tuple[str, ...]:
    """The references of the running command, with the lines of stdin in place of `-`, then those of --from-file."""
    context = click.get_current_context()
    given = context.meta.get("loratools.list")
    found = [line for ref in refs for line in (_lines(sys.stdin.read(_LIMIT)) if ref == "-" else [ref])]
    if given is not None:
        with LocalFile(given) as file:
            if file.size > _LIMIT:
                raise UsageError(f"a list of {file.size} bytes", path=given)
            found += _lines(file.read(0, file.size).decode("utf-8", "surrogateescape"))
    if not found:
        raise UsageError("no file is named", hint=f"see {context.command_path} --help")
    return tuple(found)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def answer(
    refs: Sequence[str],
    schema: str,
    ask: Callable[[str], Document],
    view: View,
    manner: Manner,
    *,
    code_of: Callable[[Document], int] = lambda _: 0,
) -> None:
    """Print what `ask` says of every reference: one JSON document, or a page each.

    One reference alone fails as any command does. Of several the exit code is the first that is not 0: an error's, or
    what `code_of` makes of an answer.
    """
    documents: list[Document] = []
    code = 0
    for ref in refs:
        try:
            document = ask(ref)
            code = code or code_of(document)
        except LoratoolsError as error:
            if len(refs) == 1:
                raise
            document = error.to_dict()
            code = code or error.exit_code
            if not manner.json:
                print_message(error)
                continue
        if manner.json:
            documents.append(document)
            continue
        emit(document, manner, view)
        if ref is not refs[-1]:
            write("\n")
    if manner.json:
        emit(documents[0] if len(refs) == 1 else {"schema": schema, "results": documents}, manner, view)
    if code:
        click.get_current_context().exit(code)
