"""`loratools architectures`."""

from __future__ import annotations

import click

from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit


@click.command("architectures")
@speaks
def command(manner: Manner) -> None:
    """Every architecture that is known."""
    from loratools.operations import catalogue

    emit(catalogue.supported_architectures().to_dict(), manner, view)


def view(page: Page, document: Document, manner: Manner) -> None:
    """One row an architecture."""
    del manner
    page.table(
        ("architecture", "what it is", "components", "variants"),
        [
            (row["id"], row["title"], ", ".join(row["components"]), ", ".join(row["variants"]))
            for row in document["results"]
        ],
    )
