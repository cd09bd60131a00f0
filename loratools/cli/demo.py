"""`loratools demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from loratools.cli import inspect as inspection
from loratools.cli.convert import proven
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, visible


@click.command("demo")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files that it makes here.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other random weights.")
@speaks
def command(manner: Manner, *, keep: Path | None, seed: int) -> None:
    """The whole story on files made on the spot.

    Offline and without any download: a tiny pipeline and an adapter for it are made, inspected, converted, merged,
    extracted, resized and combined, and every claim is measured.
    """
    from loratools.operations.demo import demo

    def tell(line: str) -> None:
        if not manner.quiet:
            sys.stderr.write(f"{visible(line)}\n")
            sys.stderr.flush()

    result = demo(keep, seed=seed, report=tell)
    emit(result.to_dict(), manner, view)
    if not result.passed:
        click.get_current_context().exit(1)


def view(page: Page, document: Document, manner: Manner) -> None:
    """What was found in the adapter, one row a conversion, and the verdict."""
    inspection.view(page, document["inspection"], manner)
    page.line("")
    page.table(
        ("converted to", ">size", "proof", ">worst error against the first"),
        [
            (
                link["to"],
                human_bytes(link["conversion"]["size"]),
                proven(link["conversion"]["proof"]),
                "infinite" if link["comparison"]["worst"] is None else f"{link['comparison']['worst']:.3g}",
            )
            for link in document["links"]
        ],
    )
    page.line("")
    page.line(
        "there and back: " + ("every tensor is the same, byte for byte" if document["identical_bytes"] else "CHANGED")
    )
    page.line("")
    page.table(
        ("verb", "made", ">size", "claim", ">measured", ">limit"),
        [
            (
                row["verb"],
                row["file"],
                human_bytes(row["size"]),
                row["claim"],
                f"{row['error']:.2g}",
                f"{row['limit']:.0e}" + ("" if row["holds"] else " BROKEN"),
            )
            for row in document["chapters"]
        ],
    )
    page.line("")
    if document["folder"]:
        page.line(f"the files are in {document['folder']}")
    page.line("passed" if document["passed"] else "FAILED", strong=True)
