"""`loratools formats`."""

from __future__ import annotations

import click

from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit


@click.command("formats")
@speaks
def command(manner: Manner) -> None:
    """Every format that is read, and every one that is written."""
    from loratools.operations import catalogue

    emit(catalogue.supported_formats().to_dict(), manner, view)


def view(page: Page, document: Document, manner: Manner) -> None:
    """One row a format: those that are written, then those that are read."""
    del manner
    page.line("written")
    page.table(
        ("format", "what it is", "alpha", "kinds", "readers"),
        [
            (row["id"], row["title"], row["alpha"], ", ".join(row["kinds"]), ", ".join(row["readers"]))
            for row in document["results"]
        ],
    )
    page.line("")
    page.line("read, in any mixture of prefixes, namings and suffixes")
    page.table(
        ("inspect says", "what it is", "written by", "we write it"),
        [(row["id"], row["title"], ", ".join(row["writers"]), row["written"]) for row in document["read"]],
    )
