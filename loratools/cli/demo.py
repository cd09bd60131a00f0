"""`loratools demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import visible


@click.command("demo")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files that it makes here.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other random weights.")
@speaks
def command(manner: Manner, *, keep: Path | None, seed: int) -> None:
    """The whole story on files made on the spot.

    Offline and without any download: a tiny pipeline and an adapter for it are made, inspected, converted and compared,
    and every claim is checked.
    """
    from loratools.operations.demo import demo

    def tell(line: str) -> None:
        if not manner.quiet:
            sys.stderr.write(f"{visible(line)}\n")
            sys.stderr.flush()

    emit(demo(keep, seed=seed, report=tell).to_dict(), manner, view)


def view(page: Page, document: Document, manner: Manner) -> None:
    """One line a step."""
    del manner
    page.facts((name, value) for name, value in document.items() if isinstance(value, str | int | float))
