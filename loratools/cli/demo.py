"""`loratools demo`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
ARCHITECTURES = (
    "chroma", "flux1", "flux2", "hunyuan-dit", "hunyuan-video", "kandinsky2.2", "kandinsky2.2-prior", "ltx-video",
    "pixart", "qwen-image", "sana", "sd1", "sd2", "sd3", "sdxl", "stable-cascade", "wan2.1", "wan2.2", "z-image",
)  # fmt: skip
DTYPES = ("bfloat16", "float16", "float32")


class Called(click.Choice[str]):
    """The architectures, and whatever else they are called, which the registry settles."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word as it is."""
        del param, ctx
        return value


@click.command("demo")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the files that it makes here.")
@click.option(
    "--make", "make_only", is_flag=True, help="Only make the pipeline, its single file and the LoRA in --keep DIR."
)
@click.option(
    "--arch",
    "--architecture",
    "architecture",
    type=Called(ARCHITECTURES),
    default="sd1",
    show_default=True,
    help="What the story is about; a shorter word that fits one of them will do (wan, flux, qwen).",
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
    converted, merged, extracted, resized, combined, rebuilt and validated, and every claim is measured.
    """

    def tell(line: str) -> None:
        if not manner.quiet:
            sys.stderr.write(f"{visible(line)}\n")
            sys.stderr.flush()

    if make_only:
        if keep is None:
            raise UsageError("--make keeps what it makes", hint="say where with --keep DIR")
        from loratools.operations.demonstration.made import make_demo

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
    """What was found in the adapter, one row for everything that was made of it, and the verdict."""
    inspection.view(page, document["inspection"], manner)
    page.line("")
    page.table(("verb", "made", ">size", "claim", ">measured", ">limit"), [*_links(document), *_chapters(document)])
    page.notes("does not apply", [f"convert to {row['to']}: {row['why']}" for row in document["not_held"]])
    page.notes("claims that do not hold", [row["failure"] for row in document["chapters"] if row["failure"]])
    page.line("")
    if document["folder"]:
        page.line(f"the files are in {document['folder']}; look at report/index.html there")
    else:
        page.line("nothing is kept; --keep DIR keeps the files, and the report with its pictures")
    page.line("passed" if document["passed"] else "FAILED", strong=True)


def _links(document: Document) -> Iterator[tuple[str, ...]]:
    """One row a conversion, the last one being the way back."""
    links = document["links"]
    for at, link in enumerate(links):
        worst, claim = (
            link["comparison"]["worst"],
            f"{link['to']}: the same change; {proven(link['conversion']['proof'])}",
        )
        if at == len(links) - 1:
            same = "the same" if document["identical_bytes"] else "CHANGED"
            claim = f"there and back: every tensor is {same}, byte for byte"
        size, name = human_bytes(link["conversion"]["size"]), Path(link["conversion"]["path"]).name
        limit = link["comparison"]["tolerance"]
        yield "convert", name, size, claim, *_measured(worst, limit, holds=link["comparison"]["equal"])


def _chapters(document: Document) -> Iterator[tuple[str, ...]]:
    for row in document["chapters"]:
        measured = _measured(row["error"], row["limit"], holds=row["holds"])
        yield row["verb"], row["file"], human_bytes(row["size"]), row["claim"], *measured


def _measured(error: float | None, limit: float, *, holds: bool) -> tuple[str, str]:
    return "infinite" if error is None else f"{error:.2g}", f"{limit:.0e}"[: None if limit else 1] + (
        "" if holds else " BROKEN"
    )
