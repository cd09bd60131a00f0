"""`loratools combine`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.arguments import paired
from loratools.cli.convert import dtype_word, known_formats, proven
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, counted, emit
from loratools.cli.text import human_bytes, plural
from loratools.errors import UsageError

METHODS = ("concat", "linear", "svd", "ties", "dare_ties", "dare_linear", "magnitude_prune")


def _formats(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in known_formats() if name.startswith(incomplete) and name != "original"]


@click.command("combine")
@click.argument("loras", metavar="LORA[=WEIGHT]…", nargs=-1)
@click.option("-o", "--out", metavar="OUT", help="A .safetensors file, or a folder for peft.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="concat",
    show_default=True,
    help="concat is exact: ranks add up. linear cuts to the largest input rank, svd to --rank. The others thin dense "
    "deltas out to --density first, as PEFT does.",
)
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), metavar="D", help="The share of elements kept.")
@click.option("--rank", type=click.IntRange(1), metavar="N", help="No layer above this rank (not concat, linear).")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the dice of dare.")
@click.option(
    "--to", metavar="FORMAT", shell_complete=_formats, help="A format of `loratools formats`; else as LORA is."
)
@click.option(
    "--dtype",
    callback=dtype_word,
    metavar="DTYPE",
    help="float16, bfloat16 or float32; else the widest of the inputs, float32 where concat multiplies a weight in.",
)
@options.allow_lossy
@options.allow_partial
@options.architecture
@options.unsafe_pickle
@options.overwrite
@options.dry_run
@options.if_needed
@options.threads
@click.option("--models", hidden=True, multiple=True, metavar="LORA", help="kohya's word for LORA.")
@click.option("--ratios", hidden=True, multiple=True, type=float, metavar="W", help="kohya's word for the weights.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--new_rank", hidden=True, type=click.IntRange(1), metavar="N", help="kohya's word for --rank.")
@click.option("--save_precision", hidden=True, callback=dtype_word, metavar="DTYPE", help="kohya's word for --dtype.")
@speaks
def command(
    loras: tuple[str, ...],
    manner: Manner,
    *,
    out: str | None,
    models: tuple[str, ...],
    ratios: tuple[float, ...],
    save_to: str | None,
    new_rank: int | None,
    save_precision: str | None,
    rank: int | None,
    dtype: str | None,
    overwrite: bool,
    dry_run: bool,
    if_needed: bool,
    threads: int,
    **how: Any,
) -> None:
    """Combine several adapters into one, and prove it.

    The change that OUT makes is the weighted sum of the changes of all LORAs, whatever format, kind, rank and layers
    each has; the weight is 1 where none is given. The output is opened again and compared with that sum, layer by
    layer, before it appears under its name.
    """
    from loratools.operations.combine import combine
    from loratools.operations.merging.scales import weighted

    given = paired(models, ratios, loras) if models else [weighted(item) for item in loras]
    target = save_to if save_to is not None else out
    if not given:
        raise UsageError("LORA is missing", hint="loratools combine A=0.7 B=0.4 -o OUT")
    if target is None and not dry_run:
        raise UsageError("OUT is missing", hint="loratools combine A=0.7 B=0.4 -o OUT")
    pending = combine(given, rank=rank if rank is not None else new_rank, dtype=dtype or save_precision, **how)
    if dry_run:
        plan = pending.preview(target, overwrite=overwrite) if target else pending.plan
        emit(plan.to_dict(), manner, plan_view)
        return
    assert target is not None
    with Progress("combine", quiet=manner.quiet) as progress:
        result = pending.save(target, overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress)
    emit(result.to_dict(), manner, view)


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be read and written."""
    page.line("plan (nothing was written)", strong=True)
    page.facts(
        [
            ("write", f"{document['path']} ({document['format']})" if document["path"] else document["format"]),
            ("size", human_bytes(document["size"])),
            ("architecture", document["architecture"]),
            ("method", document["method"]),
            ("layers", f"{len(document['layers']):,}"),
            ("ranks", counted(document["ranks"])),
            ("free disk", None if document["free_disk"] is None else human_bytes(document["free_disk"])),
        ]
    )
    page.line("")
    _inputs(page, document)
    _layers(page, document, manner)
    page.notes("lost", document["lost"])
    page.notes("notes", document["notes"])


def view(page: Page, document: Document, manner: Manner) -> None:
    """What was written, what cutting cost, and how it was proven."""
    if document["skipped"]:
        page.line(f"{document['path']} was made from these inputs in this way: nothing to do")
        return
    page.line(f"{document['path']}: {document['format']}, {human_bytes(document['size'])}", strong=True)
    page.line(f"{plural(len(document['layers']), 'layer')}, rank {counted(document['ranks'])}")
    if document["error"]:
        page.line(f"relative error {document['error']:.3g} over the layers that were cut to their rank")
    page.line(f"proven from the output as re-opened: {proven(document['proof'])}")
    page.line("")
    _inputs(page, document)
    _layers(page, document, manner)
    page.notes("lost", document["lost"])
    page.notes("warnings", document["warnings"])


def _inputs(page: Page, document: Document) -> None:
    """Every input with its weight and the number of layers that it changes."""
    counts = [sum(at in row["inputs"] for row in document["layers"]) for at in range(len(document["inputs"]))]
    page.table(
        ("adapter", ">weight", ">layers"),
        [
            (item["path"], f"{item['weight']:g}", f"{count:,}")
            for item, count in zip(document["inputs"], counts, strict=True)
        ],
    )


def _layers(page: Page, document: Document, manner: Manner) -> None:
    """With -v every layer, the worst first."""
    if not manner.verbose:
        return
    page.line("")
    page.table(
        ("layer", ">rank", ">from", ">relative error"),
        [
            (
                row["module"],
                row["rank"],
                "+".join(map(str, row["ranks"])),
                "not computed" if row["error"] is None else f"{row['error']:.3g}",
            )
            for row in sorted(document["layers"], key=lambda row: -(row["error"] or 0.0))
        ],
    )
