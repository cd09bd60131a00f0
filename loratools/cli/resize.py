"""`loratools resize`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.arguments import given, size
from loratools.cli.convert import dtype_word, known_formats, proven
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, plural

METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")
SHOWN = 10  # changes of rank, and layers, on a page


def _formats(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in known_formats() if name.startswith(incomplete) and name != "original"]


@click.command("resize")
@click.argument("ref", metavar="IN", required=False)
@click.argument("out", metavar="OUT", required=False)
@click.option("--rank", type=click.IntRange(1), metavar="N", help="The rank of every layer; the most, with --method.")
@click.option("--conv-rank", type=click.IntRange(1), metavar="N", help="The same for kernels larger than 1x1.")
@click.option("--energy", type=click.FloatRange(0, 1, min_open=True), metavar="E", help="Keep this share of each ‖Δ‖².")
@click.option(
    "--error",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="E",
    help="Keep each layer's relative error at or below this.",
)
@click.option(
    "--size",
    callback=size,
    metavar="SIZE",
    help="The finished file is no larger (20MB); ranks go where they help most over all layers.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="Keep singular values by kohya's rules: above the largest / P, a share P of ‖Δ‖, or a share P of their sum.",
)
@click.option("--parameter", type=float, metavar="P", help="The parameter of --method: 10, or a share such as 0.9.")
@click.option("--to", metavar="FORMAT", shell_complete=_formats, help="A format of `loratools formats`; else as IN is.")
@click.option("--dtype", callback=dtype_word, metavar="DTYPE", help="Cast to float16, bfloat16 or float32.")
@options.allow_lossy
@options.allow_partial
@options.architecture
@options.unsafe_pickle
@options.overwrite
@options.dry_run
@options.if_needed
@options.threads
@click.option("--model", hidden=True, metavar="IN", help="kohya's word for IN.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--new_rank", hidden=True, type=click.IntRange(1), metavar="N", help="kohya's word for --rank.")
@click.option("--new_conv_rank", hidden=True, type=click.IntRange(1), metavar="N", help="kohya's word for --conv-rank.")
@click.option("--dynamic_method", hidden=True, type=click.Choice(METHODS), help="kohya's word for --method.")
@click.option("--dynamic_param", hidden=True, type=float, metavar="P", help="kohya's word for --parameter.")
@click.option("--save_precision", hidden=True, callback=dtype_word, metavar="DTYPE", help="kohya's word for --dtype.")
@speaks
def command(
    ref: str | None,
    out: str | None,
    manner: Manner,
    *,
    model: str | None,
    save_to: str | None,
    new_rank: int | None,
    new_conv_rank: int | None,
    dynamic_method: str | None,
    dynamic_param: float | None,
    save_precision: str | None,
    rank: int | None,
    conv_rank: int | None,
    method: str | None,
    parameter: float | None,
    dtype: str | None,
    overwrite: bool,
    dry_run: bool,
    if_needed: bool,
    threads: int,
    **how: Any,
) -> None:
    """Change the rank of an adapter, and measure what it cost.

    IN is a file or a folder; OUT is written in its format and spelling. One of --rank, --energy, --error, --size and
    --method says how far to go. Ranks are cut by the factors' singular values; layers that do not shrink keep their
    bytes. The output is opened again and compared with IN, layer by layer, before it appears under its name.
    """
    from loratools.operations.resize import resize

    if model is not None:
        ref, out = model, out if out is not None else ref
    target = save_to if save_to is not None else out
    then = "now planning" if dry_run else "now writing"
    with Progress("measure", quiet=manner.quiet, done="measured", then=then) as progress:
        pending = resize(
            given(ref, "IN"),
            rank=rank if rank is not None else new_rank,
            conv_rank=conv_rank if conv_rank is not None else new_conv_rank,
            method=method or dynamic_method,
            parameter=parameter if parameter is not None else dynamic_param,
            dtype=dtype or save_precision,
            threads=threads,
            progress=progress,
            **how,
        )
        if dry_run:
            plan = (
                pending.preview(target, overwrite=overwrite, threads=threads, progress=progress)
                if target
                else pending.measure(threads=threads, progress=progress)
            )
    if dry_run:
        emit(plan.to_dict(), manner, plan_view)
        return
    with Progress("resize", quiet=manner.quiet) as progress:
        result = pending.save(
            given(target, "OUT"), overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress
        )
    emit(result.to_dict(), manner, view)


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be written, and what it would cost."""
    page.line("plan (nothing was written)", strong=True)
    page.facts(
        [
            ("read", f"{document['source']} ({document['source_format']}, {human_bytes(document['old_size'])})"),
            ("write", f"{document['path']} ({document['format']})" if document["path"] else document["format"]),
            ("size", human_bytes(document["size"])),
            ("architecture", document["architecture"]),
            ("relative error", _error(document["error"])),
            ("free disk", None if document["free_disk"] is None else human_bytes(document["free_disk"])),
        ]
    )
    _ranks(page, document, manner)
    page.notes("lost", document["lost"])
    page.notes("notes", document["notes"])


def view(page: Page, document: Document, manner: Manner) -> None:
    """What was written, what it cost, and how it was proven."""
    if document["skipped"]:
        page.line(f"{document['path']} was made from this input in this way: nothing to do")
        return
    sizes = f"{human_bytes(document['size'])} (IN: {human_bytes(document['old_size'])})"
    page.line(f"{document['path']}: {document['format']}, {sizes}", strong=True)
    page.line(f"relative error {_error(document['error'])} over all layers")
    page.line(f"proven from the output as re-opened: {proven(document['proof'])}")
    _ranks(page, document, manner)
    page.notes("lost", document["lost"])
    page.notes("warnings", document["warnings"])


def _ranks(page: Page, document: Document, manner: Manner) -> None:
    """How many layers went from which rank to which; with -v every layer, the worst first."""
    rows = document["ranks"]
    most = len(rows) if manner.verbose else SHOWN
    page.line("")
    page.table((">rank", ">was", ">layers"), [(row["new"], row["old"], f"{row['layers']:,}") for row in rows[:most]])
    if len(rows) > most:
        page.line(f"and {plural(len(rows) - most, 'other change')} (all with -v or --json)")
    if manner.verbose:
        layers = [row for row in document["layers"] if row["new_rank"] is not None]
        page.line("")
        page.table(
            ("layer", ">rank", ">was", ">relative error"),
            [
                (row["module"], row["new_rank"], row["old_rank"], _error(row["error"]))
                for row in sorted(layers, key=lambda row: -(row["error"] or 0.0))
            ],
        )


def _error(value: float | None) -> str:
    return "not computed" if value is None else f"{value:.3g}"
