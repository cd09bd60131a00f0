"""`loratools formats`."""

from __future__ import annotations

import click

from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit


@click.command("formats")
@speaks
def command(manner: Manner) -> None:
    """Every format that is written."""
    from loratools.operations import catalogue

    emit(catalogue.supported_formats().to_dict(), manner, view)


def view(page: Page, document: Document, manner: Manner) -> None:
    """One row a format."""
    del manner
    page.table(
        ("format", "what it is", "alpha", "kinds", "readers"),
        [
            (row["id"], row["title"], row["alpha"], ", ".join(row["kinds"]), ", ".join(row["readers"]))
            for row in document["results"]
        ],
    )
    page.line("")
    page.line("These are written; reading accepts them all, in any mixture of prefixes, namings and suffixes.")
