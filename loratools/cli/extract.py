"""`loratools extract`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.arguments import size
from loratools.cli.convert import DTYPES, known_formats
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, counted, emit
from loratools.cli.text import human_bytes, plural
from loratools.errors import UsageError, nearest

SHOWN = 10  # layers, and lines of a list, on a page
STATES = ("changed", "within rounding", "identical", "left out")


def _dtype(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    if value.lower() not in DTYPES:
        hint = nearest(value.lower(), DTYPES) or "float16, bfloat16 or float32"
        raise UsageError(f"{parameter.opts[0]}: unknown dtype {value!r}", hint=hint)
    return DTYPES[value.lower()]


def _patterns(
    _context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    found = []
    for value in values:
        pattern, equals, number = value.rpartition("=")
        if not equals or not pattern or not number.isdecimal():
            raise UsageError(f"{parameter.opts[0]}: {value!r} says no rank", hint="for example 'unet.down_blocks.*=16'")
        found.append((pattern, int(number)))
    return tuple(found)


def _formats(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in known_formats() if name.startswith(incomplete) and name != "original"]


@click.command("extract")
@click.argument("base", metavar="BASE", required=False)
@click.argument("tuned", metavar="TUNED", required=False)
@click.option("-o", "--out", metavar="OUT", help="A .safetensors file, or a folder for peft.")
@click.option("--rank", type=click.IntRange(1), metavar="N", help="The rank of every layer.")
@click.option("--conv-rank", type=click.IntRange(1), metavar="N", help="The rank of kernels larger than 1x1.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="E",
    help="Keep this share of each ‖Δ‖².",
)
@click.option(
    "--error",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="E",
    help="Keep each layer's relative error below this (0.05 if nothing is said).",
)
@click.option(
    "--size",
    callback=size,
    metavar="SIZE",
    help="The finished file is no larger (100MB); bytes go where they help most.",
)
@click.option(
    "--pattern",
    "patterns",
    multiple=True,
    callback=_patterns,
    metavar="PATTERN=N",
    help="Another rank for layers that fit ('unet.down_blocks.*=16'; 0 leaves out; the last one that fits counts).",
)
@click.option(
    "--full",
    callback=options.words,
    metavar="WORD,...",
    help="Keep norms, biases, embeddings too: differences, or whole modules in PEFT.",
)
@click.option("--dora", is_flag=True, help="Row norms as magnitudes, and factors for the directions alone.")
@click.option("--to", metavar="FORMAT", shell_complete=_formats, help="A format of `loratools formats`.")
@click.option(
    "--dtype", callback=_dtype, metavar="DTYPE", help="float16 (bfloat16 for such a base), bfloat16, float32."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same bytes.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to decompose."
)
@click.option("--force", is_flag=True, help="Go on where the two models do not seem to belong together.")
@options.allow_lossy
@options.allow_nonfinite
@options.architecture
@options.unsafe_pickle
@options.overwrite
@options.dry_run
@options.if_needed
@options.threads
@click.option("--model_org", hidden=True, metavar="BASE", help="kohya's word for BASE.")
@click.option("--model_tuned", hidden=True, metavar="TUNED", help="kohya's word for TUNED.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--dim", hidden=True, type=click.IntRange(1), metavar="N", help="kohya's word for --rank.")
@click.option("--conv_dim", hidden=True, type=click.IntRange(1), metavar="N", help="kohya's word for --conv-rank.")
@click.option("--save_precision", hidden=True, callback=_dtype, metavar="DTYPE", help="kohya's word for --dtype.")
@speaks
def command(
    base: str | None,
    tuned: str | None,
    manner: Manner,
    *,
    out: str | None,
    model_org: str | None,
    model_tuned: str | None,
    save_to: str | None,
    dim: int | None,
    conv_dim: int | None,
    save_precision: str | None,
    rank: int | None,
    conv_rank: int | None,
    dtype: str | None,
    full: tuple[str, ...] | None,
    overwrite: bool,
    dry_run: bool,
    if_needed: bool,
    **how: Any,
) -> None:
    """An adapter from a fine-tune, by singular value decomposition.

    BASE and TUNED are one model before and after tuning: checkpoints, pipeline folders or model folders, in any two
    containers and namings. Each layer's change is cut at a rank, and the error of every layer is measured and printed.
    """
    from loratools.operations.extract import extract

    models = [name for name in (model_org, model_tuned, base, tuned) if name is not None]
    if len(models) != 2:
        missing = "BASE" if not models else "TUNED"
        raise UsageError(
            f"{missing} is missing" if len(models) < 2 else "two models are compared, no more",
            hint="loratools extract BASE TUNED -o OUT",
        )
    target = save_to if save_to is not None else out
    if target is None and not dry_run:
        raise UsageError("OUT is missing", hint="loratools extract BASE TUNED -o OUT")
    pending = extract(
        models[0],
        models[1],
        rank=rank or dim,
        conv_rank=conv_rank or conv_dim,
        dtype=dtype or save_precision,
        full=full or (),
        **how,
    )
    if dry_run:
        plan = pending.preview(target, overwrite=overwrite) if target else pending.plan
        emit(plan.to_dict(), manner, plan_view)
        return
    assert target is not None
    with Progress("extract", quiet=manner.quiet, done="compared") as progress:
        result = pending.save(target, overwrite=overwrite, if_needed=if_needed, progress=progress)
    emit(result.to_dict(), manner, view)


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be read, compared and written."""
    page.line("plan (nothing was written)", strong=True)
    largest = document["size"]
    page.facts(
        [
            ("base", document["base"]),
            ("tuned", document["tuned"]),
            ("architecture", document["architecture"] or " or ".join(document["candidates"]) or "unknown"),
            ("write", f"{document['path'] or 'OUT'} ({document['format']}, {document['dtype']})"),
            ("size", "as the errors need" if largest is None else f"at most {human_bytes(largest)}"),
            *((name, value) for name, value in document["parameters"].items() if name not in ("dtype", "size")),
            ("read", human_bytes(document["reads"])),
            ("peak memory", f"about {human_bytes(document['peak_memory'])}"),
            ("free disk", None if document["free_disk"] is None else human_bytes(document["free_disk"])),
        ]
    )
    page.line("")
    page.table(
        ("component", "tensors", ">count", ">weights in both"),
        [
            (name, sort, f"{count:,}", f"{document['coverage'][name]:.0%}" if at == 0 else "")
            for name, counts in document["components"].items()
            for at, (sort, count) in enumerate(counts.items())
        ],
    )
    page.notes("lost", document["lost"])
    page.notes("notes", document["notes"], most=None if manner.verbose else SHOWN)


def view(page: Page, document: Document, manner: Manner) -> None:
    """What changed, what was kept of it, and at which error."""
    if document["skipped"]:
        page.line(f"{document['path']} was made from these inputs in this way: nothing to do")
        return
    most = None if manner.verbose else SHOWN
    page.line(
        f"{document['path']}: {document['format']}, {document['dtype']}, {human_bytes(document['size'])}", strong=True
    )
    page.line(
        f"proven from the output as re-opened: {plural(document['proof']['identical'], 'adapter')} byte for byte; "
        f"{plural(len(document['measured']), 'error')} measured again in float64"
    )
    page.line("")
    page.table(
        ("component", "tensors", *(f">{state}" for state in STATES)),
        [
            (name if at == 0 else "", sort, *(f"{counts[state]:,}" if state in counts else "" for state in STATES))
            for name, by_sort in document["components"].items()
            for at, (sort, counts) in enumerate(by_sort.items())
        ],
    )
    if document["layers"]:
        _layers(page, document, most)
    page.notes("stored whole", document["stored"], most=most)
    page.notes("left out", document["left_out"], most=most)
    page.line("")
    vllm = document["loaders"].get("vllm", {})
    told = document["format"] == "peft" and not vllm.get("loaded")
    page.facts(
        [
            ("loaded by", ", ".join(loaded(document["loaders"]))),
            ("not by vllm", "; ".join(row["reason"] for row in vllm.get("reasons", ())) if told else None),
        ]
    )
    page.notes("warnings", document["warnings"], most=most)


def _layers(page: Page, document: Document, most: int | None) -> None:
    """The error in total and by layer, the worst first, and the energy curve."""
    layers = document["layers"]
    page.line("")
    page.facts(
        [
            ("ranks", counted(document["ranks"])),
            (
                "relative error",
                f"{document['error']:.3g} of all layers together, {layers[0]['error']:.3g} in the worst",
            ),
            ("energy", f"{document['energy']:.4%} of ‖Δ‖²"),
            ("energy by rank", ", ".join(f"{row['rank']}: {row['energy']:.2%}" for row in document["curve"])),
        ]
    )
    page.line("")
    shown = layers[:most]
    page.table(
        ("layer" if len(shown) == len(layers) else "worst layers", "shape", ">rank", ">error", ">energy", ">‖Δ‖/‖W‖"),
        [
            (
                row["module"],
                "×".join(map(str, row["shape"])),
                row["rank"],
                f"{row['error']:.3g}",
                f"{row['energy']:.3%}",
                "-" if row["relative_change"] is None else f"{row['relative_change']:.2g}",
            )
            for row in shown
        ],
    )
    if len(shown) < len(layers):
        page.line(f"and {len(layers) - len(shown):,} more (all with -v or --json)")


def loaded(loaders: Document) -> list[str]:
    """`diffusers 264 of 264`, for every runtime that loads any of it."""
    return [f"{name} {row['loaded']} of {row['of']}" for name, row in loaders.items() if row["loaded"]]
