"""`loratools merge`."""

from __future__ import annotations

import math
from typing import Any

import click

from loratools.cli.arguments import paired
from loratools.cli.merging_options import dtype_word, merging
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes
from loratools.errors import UsageError

SHOWN = 8  # layers and modules on a page


@click.command("merge")
@click.argument("base", metavar="BASE", required=False)
@click.argument("loras", metavar="LORA[=SCALE]…", nargs=-1)
@click.option("-o", "--out", metavar="OUT", help="A .safetensors file, or a folder where BASE is one.")
@click.option(
    "--untie", is_flag=True, help="Give a language model that reads its embedding as its head a head of its own."
)
@merging
@click.option("--sd_model", hidden=True, metavar="BASE", help="kohya's word for BASE.")
@click.option("--models", hidden=True, multiple=True, metavar="LORA", help="kohya's word for LORA.")
@click.option("--ratios", hidden=True, multiple=True, type=float, metavar="S", help="kohya's word for the scales.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--save_precision", hidden=True, callback=dtype_word, metavar="DTYPE", help="kohya's word for --dtype.")
@speaks
def command(
    base: str | None,
    loras: tuple[str, ...],
    manner: Manner,
    *,
    out: str | None,
    sd_model: str | None,
    models: tuple[str, ...],
    ratios: tuple[float, ...],
    save_to: str | None,
    save_precision: str | None,
    dtype: str | None,
    stochastic_rounding: bool,
    seed: int,
    overwrite: bool,
    dry_run: bool,
    if_needed: bool,
    threads: int,
    **how: Any,
) -> None:
    """Add adapters to the weights of a base model.

    BASE is a checkpoint of any naming, one file or a folder; OUT keeps its container, naming, dtype and order. All
    adapters are summed in float32 and cast once; tensors that none of them changes are copied byte for byte.
    """
    from loratools.operations.merge import plan_merge

    model, given = _kohya(base, loras, sd_model, models, ratios)
    target = save_to if save_to is not None else out
    if target is None and not dry_run:
        raise UsageError("OUT is missing", hint="loratools merge BASE LORA=0.8 -o OUT")
    pending = plan_merge(
        model,
        given,
        dtype=dtype or save_precision,
        stochastic_seed=seed if stochastic_rounding else None,
        **how,
    )
    if dry_run:
        plan = pending.preview(target, overwrite=overwrite) if target else pending.plan
        emit(plan.to_dict(), manner, plan_view)
        return
    assert target is not None
    with Progress("merge", quiet=manner.quiet) as progress:
        result = pending.save(target, overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress)
    emit(result.to_dict(), manner, view)


def _kohya(
    base: str | None, loras: tuple[str, ...], sd_model: str | None, models: tuple[str, ...], ratios: tuple[float, ...]
) -> tuple[str, list[tuple[str, float]]]:
    """The base and the scaled adapters, by our words or kohya's."""
    from loratools.operations.merging.scales import weighted

    if sd_model is not None:
        loras, base = ((base, *loras) if base is not None else loras), sd_model
    if base is None:
        raise UsageError("BASE is missing", hint="loratools merge BASE LORA=0.8 -o OUT")
    if not models:
        return base, [weighted(item) for item in loras]
    return base, paired(models, ratios, loras)


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be read, changed, copied, written and left out."""
    page.line("plan (nothing was written)", strong=True)
    page.facts(
        [
            ("base", f"{document['base']} ({document['architecture'] or 'unknown architecture'})"),
            ("write", document["path"]),
            ("tensors changed", f"{document['changed']:,}"),
            ("tensors cast", document["cast"] or None),
            ("tensors copied", f"{document['copied']:,}"),
            ("files beside", document["beside"] or None),
            ("peak memory", f"about {human_bytes(document['peak_memory'])}"),
            ("free disk", None if document["free_disk"] is None else human_bytes(document["free_disk"])),
        ]
    )
    page.line("")
    adapter_rows(page, document)
    page.line("")
    page.table(
        ("file", ">tensors", ">size"),
        [(item["name"], f"{item['tensors']:,}", human_bytes(item["bytes"])) for item in document["files"]],
    )
    _remarks(page, document, manner)


def view(page: Page, document: Document, manner: Manner) -> None:
    """What was merged, how large the changes are and how much of them the dtype could hold."""
    if document["skipped"]:
        page.line(f"{document['path']} was made from these inputs in this way: nothing to do")
        return
    page.line(f"{document['path']}: {human_bytes(document['size'])}", strong=True)
    cast = f", {document['cast']:,} cast" if document["cast"] else ""
    page.line(
        f"{document['changed']:,} tensors changed{cast}, {document['copied']:,} copied byte for byte; read again and "
        "compared"
    )
    page.line("")
    adapter_rows(page, document)
    layers = document["layers"]
    if layers:
        page.line("")
        page.facts(change_facts(document))
        ordered = sorted(layers, key=lambda row: -math.inf if row["lost"] is None else -row["lost"])
        shown = ordered if manner.verbose else ordered[:SHOWN]
        page.line("")
        page.table(
            ("layers that lose most" if len(shown) < len(ordered) else "layer", ">‖Δ‖/‖W‖", ">lost"),
            [
                (row["layer"], _figure(row["ratio"]), "-" if row["lost"] is None else f"{row['lost']:.2%}")
                for row in shown
            ],
        )
        if len(shown) < len(ordered):
            page.line(f"and {len(ordered) - len(shown):,} more (all with -v or --json)")
    _remarks(page, document, manner)


def change_facts(document: Document) -> list[tuple[str, object]]:
    """How large the changes are, and how much of them the dtype could hold."""
    return [
        ("change", f"‖Δ‖/‖W‖ {_figure(document['ratio'])} (root mean square over layers)"),
        ("lost to rounding", f"{document['lost']:.2%} of ‖Δ‖ in the worst layer"),
    ]


def adapter_rows(page: Page, document: Document) -> None:
    """One row for each component of each adapter."""
    rows = []
    for item in document["adapters"]:
        for at, (component, count) in enumerate(item["modules"].items()):
            first = at == 0
            matched = item["matched"].get(component, 0)
            rows.append(
                (
                    item["path"] if first else "",
                    f"{item['scale']:g}" if first else "",
                    component,
                    f"{matched:,}",
                    f"{count:,}",
                )
            )
    page.table(("adapter", ">scale", "component", ">matched", ">of"), rows)


def unmerged(document: Document) -> list[str]:
    """Modules without a place, and what else of the adapters was left out."""
    unmatched = [
        f"{row['module']}: {row['why']}" + (f" (nearest: {row['nearest']})" if row["nearest"] else "")
        for item in document["adapters"]
        for row in item["unmatched"]
    ]
    return [*unmatched, *(line for item in document["adapters"] for line in item["left_out"])]


def _remarks(page: Page, document: Document, manner: Manner) -> None:
    most = None if manner.verbose else SHOWN
    page.notes("not merged", unmerged(document), most=most)
    page.notes("files left out", document["left_out"], most=most)
    page.notes("warnings", document["warnings"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
