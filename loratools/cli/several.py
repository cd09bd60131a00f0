"""A command over several references: each is answered in its turn, and one that fails leaves its error in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from loratools.cli.failures import print_message
from loratools.cli.options import Manner
from loratools.cli.render import Document, Page, emit, write
from loratools.errors import LoratoolsError

View = Callable[[Page, Document, Manner], None]


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
