"""`loratools merge`."""

from __future__ import annotations

import math
from typing import Any

import click

from loratools.cli import options
from loratools.cli.arguments import size, weighted
from loratools.cli.convert import DTYPES as PLAIN_DTYPES
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes
from loratools.errors import UsageError, nearest

DTYPES = {
    **PLAIN_DTYPES,
    "fp8": "F8_E4M3", "fp8_e4m3": "F8_E4M3", "float8_e4m3fn": "F8_E4M3", "e4m3": "F8_E4M3",
    "fp8_e5m2": "F8_E5M2", "float8_e5m2": "F8_E5M2", "e5m2": "F8_E5M2",
}  # fmt: skip
SHOWN = 8  # layers and modules on a page


def _dtype(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    if value.lower() not in DTYPES:
        hint = nearest(value.lower(), DTYPES) or "float16, bfloat16, float32, fp8_e4m3 or fp8_e5m2"
        raise UsageError(f"{parameter.opts[0]}: unknown dtype {value!r}", hint=hint)
    return DTYPES[value.lower()]


@click.command("merge")
@click.argument("base", metavar="BASE", required=False)
@click.argument("loras", metavar="LORA[=SCALE]…", nargs=-1)
@click.option("-o", "--out", metavar="OUT", help="A .safetensors file, or a folder where BASE is one.")
@click.option(
    "--scale",
    metavar="S",
    help="Multiply all adapters by a number, or by component: unet=0.8,text_encoder=0.5.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="PATTERN=W",
    help="Multiply layers that fit a pattern ('unet.down_blocks.*=0.5'; the last one that fits counts), or by a list "
    "of 12, 17, 20, 26 or 61 block weights.",
)
@click.option("--components", callback=options.words, metavar="NAMES", help="Merge these components of the adapters.")
@click.option(
    "--dtype",
    callback=_dtype,
    metavar="DTYPE",
    help="Cast every float: float16, bfloat16, float32, fp8_e4m3, fp8_e5m2 (8 bits: the denoiser's matrices alone).",
)
@click.option(
    "--max-shard-size", callback=size, metavar="SIZE", help="Write a folder of files no larger than this (5GB)."
)
@click.option("--stochastic-rounding", is_flag=True, help="Round by dice, so that small changes survive on average.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of --stochastic-rounding.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)
@options.allow_partial
@options.allow_nonfinite
@options.architecture
@options.unsafe_pickle
@options.overwrite
@options.dry_run
@options.if_needed
@options.threads
@click.option("--sd_model", hidden=True, metavar="BASE", help="kohya's word for BASE.")
@click.option("--models", hidden=True, multiple=True, metavar="LORA", help="kohya's word for LORA.")
@click.option("--ratios", hidden=True, multiple=True, type=float, metavar="S", help="kohya's word for the scales.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--save_precision", hidden=True, callback=_dtype, metavar="DTYPE", help="kohya's word for --dtype.")
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
    if sd_model is not None:
        loras, base = ((base, *loras) if base is not None else loras), sd_model
    if base is None:
        raise UsageError("BASE is missing", hint="loratools merge BASE LORA=0.8 -o OUT")
    if not models:
        return base, [weighted(item) for item in loras]
    # kohya's --models and --ratios take several words each: those after the first arrive as plain arguments.
    names = [*models, *(item for item in loras if not _is_number(item))]
    scales = [*ratios, *(float(item) for item in loras if _is_number(item))]
    if scales and len(scales) != len(names):
        raise UsageError(f"{len(names)} models and {len(scales)} ratios", hint="one ratio for each model")
    return base, list(zip(names, scales or [1.0] * len(names), strict=True))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
    _adapters(page, document)
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
    _adapters(page, document)
    layers = document["layers"]
    if layers:
        page.line("")
        page.facts(
            [
                ("change", f"‖Δ‖/‖W‖ {_figure(document['ratio'])} (root mean square over layers)"),
                ("lost to rounding", f"{document['lost']:.2%} of ‖Δ‖ in the worst layer"),
            ]
        )
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


def _adapters(page: Page, document: Document) -> None:
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


def _remarks(page: Page, document: Document, manner: Manner) -> None:
    most = None if manner.verbose else SHOWN
    unmatched = [
        f"{row['module']}: {row['why']}" + (f" (nearest: {row['nearest']})" if row["nearest"] else "")
        for item in document["adapters"]
        for row in item["unmatched"]
    ]
    page.notes(
        "not merged", [*unmatched, *(line for item in document["adapters"] for line in item["left_out"])], most=most
    )
    page.notes("files left out", document["left_out"], most=most)
    page.notes("warnings", document["warnings"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
