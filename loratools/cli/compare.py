"""`loratools compare`."""

from __future__ import annotations

import click

from loratools.cli import options
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit

IN = {"a": "A only", "b": "B only", "both": "both"}
SHOWN = 30  # modules that differ, on a page


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--tolerance", type=float, default=1e-5, show_default=True, help="The largest relative error allowed.")
@click.option("--base", metavar="BASE", help="The base model, for DoRA, IA3, GLoRA, OFT and BOFT: deltas over it.")
@options.plot
@options.replot
@options.architecture
@options.unsafe_pickle
@options.threads
@speaks
def command(
    first: str,
    second: str,
    manner: Manner,
    *,
    tolerance: float,
    arch: str | None,
    base: str | None,
    unsafe_pickle: bool,
    threads: int,
    plot: str | None,
    overwrite: bool,
) -> None:
    """Do two adapters make the same change?

    The deltas of A and B are compared module by module, from their factors, whatever format each is in. Exit code 1 if
    a module differs by more than the tolerance or stands on one side only. Kinds that change a weight by a function of
    itself are compared over the weights of BASE, and without it by their factors, where both are of one kind.
    """
    from loratools.operations.compare import compare

    result = compare(
        first,
        second,
        tolerance=tolerance,
        arch=arch,
        base=base,
        threads=threads,
        unsafe_pickle=unsafe_pickle,
        plot=plot,
        overwrite=overwrite,
    )
    emit(result.to_dict(), manner, view)
    if not result.equal:
        click.get_current_context().exit(1)


def view(page: Page, document: Document, manner: Manner) -> None:
    """The verdict, and the modules that differ (with -v: all)."""
    verdict = "the same change" if document["equal"] else "different"
    worst = _error(document["worst"])
    page.line(f"{verdict}: worst relative error {worst}, tolerance {document['tolerance']:g}", strong=True)
    page.facts(
        [
            ("modules", f"{document['compared']:,}"),
            ("only in A", document["only_in_a"] or None),
            ("only in B", document["only_in_b"] or None),
        ]
    )
    rows = [row for row in document["modules"] if manner.verbose or differs(row, document["tolerance"])]
    shown = rows if manner.verbose else rows[:SHOWN]
    if rows:
        page.line("")
    page.table(
        ("module", "in", ">relative error", ">cosine", "seen as"),
        [
            (row["module"], IN[row["where"]], _error(row["relative_error"]), _figure(row["cosine"]), row["proof"])
            for row in shown
        ],
    )
    if len(rows) > len(shown):
        page.line(f"and {len(rows) - len(shown):,} more (all with -v or --json)")
    if "plot" in document:
        page.line(f"plot: {document['plot']}")


def differs(row: Document, tolerance: float) -> bool:
    """Whether a module breaks the equality; an error of null is an infinite one."""
    return row["relative_error"] is None or row["relative_error"] > tolerance


def _error(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
