"""`loratools demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loratools.cli import inspect as inspection
from loratools.cli.convert import proven
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, visible
from loratools.errors import UsageError

# As in pipelines.blueprints and pipelines.synthetic, spelt out here so that --help need not import them.
ARCHITECTURES = ("flux1", "sd1", "sd2", "sdxl")
DTYPES = ("bfloat16", "float16", "float32")


@click.command("demo")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files that it makes here.")
@click.option(
    "--make", "make_only", is_flag=True, help="Only make the pipeline, its single file and the LoRA in --keep DIR."
)
@click.option(
    "--arch",
    "--architecture",
    "architecture",
    type=click.Choice(ARCHITECTURES),
    default="sd1",
    show_default=True,
    help="What the story is about.",
)
@click.option(
    "--size",
    type=click.Choice(("tiny", "full")),
    default="tiny",
    show_default=True,
    help="Narrow layers, or the published configuration (gigabytes).",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the weights; float32 if tiny, float16 if full.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where weights are drawn."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Other random weights.")
@speaks
def command(manner: Manner, *, keep: Path | None, make_only: bool, **wishes: Any) -> None:
    """The whole story on files made on the spot.

    Offline and without any download: a pipeline with random weights and an adapter for it are made, inspected,
    converted, merged, extracted, resized and combined, and every claim is measured.
    """

    def tell(line: str) -> None:
        if not manner.quiet:
            sys.stderr.write(f"{visible(line)}\n")
            sys.stderr.flush()

    if make_only:
        if keep is None:
            raise UsageError("--make keeps what it makes", hint="say where with --keep DIR")
        from loratools.operations.demo_made import make_demo

        emit(make_demo(keep, report=tell, **wishes).to_dict(), manner, view_made)
        return
    from loratools.operations.demo import demo

    result = demo(keep, report=tell, **wishes)
    emit(result.to_dict(), manner, view)
    if not result.passed:
        click.get_current_context().exit(1)


def view_made(page: Page, document: Document, _manner: Manner) -> None:
    """What was made, and where."""
    page.table(("made", ">size"), [(row["file"], human_bytes(row["size"])) for row in document["files"]])
    page.line("")
    page.line(f"the files are in {document['folder']}")


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
