"""`loratools validate`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from loratools.cli import options
from loratools.cli.convert import DTYPES as PLAIN_DTYPES
from loratools.cli.merge import adapter_rows
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, plural, visible
from loratools.errors import UsageError, nearest

SHOWN = 8  # modules on a page
_SIZE = re.compile(r"(\d+)(?:x(\d+))?", re.IGNORECASE)


def _size(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`768x512` → (768, 512); one number is both."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value)
    if not found or int(found[1]) < 8:
        raise UsageError(f"{parameter.opts[0]}: {value!r} is no size in pixels", hint="for example 768x512, or 512")
    return int(found[1]), int(found[2] or found[1])


def _dtype(_context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value.lower() not in PLAIN_DTYPES:
        hint = nearest(value.lower(), PLAIN_DTYPES) or "float32, bfloat16 or float16"
        raise UsageError(f"{parameter.opts[0]}: unknown dtype {value!r}", hint=hint)
    return PLAIN_DTYPES[value.lower()]


@click.command("validate")
@click.argument("pipeline", metavar="PIPELINE")
@click.argument("loras", metavar="LORA[=SCALE]…", nargs=-1, required=True)
@click.option(
    "--to", multiple=True, metavar="FORMAT", help="Convert to these formats; otherwise to all that can hold it."
)
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="What to draw; may stand more than once.")
@click.option(
    "--seed", "seeds", multiple=True, type=int, metavar="N", help="Where noise begins (0); may stand more than once."
)
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Steps of denoising.")
@click.option(
    "--guidance", type=float, metavar="G", help="How closely the prompt is followed; otherwise the pipeline's own."
)
@click.option(
    "--size", callback=_size, metavar="WxH", help="Size of the pictures in pixels; otherwise the pipeline's own."
)
@click.option("--frames", type=click.IntRange(1), metavar="N", help="Length of a film; otherwise the pipeline's own.")
@click.option(
    "--scheduler", metavar="NAME", help="dpmsolver++-karras, ddim, euler, euler-a, unipc, …; otherwise its own."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or mps. Noise is drawn on the CPU always.")
@click.option(
    "--dtype",
    callback=_dtype,
    default="float32",
    show_default=True,
    metavar="DTYPE",
    help="float32, bfloat16 or float16; beside a narrow one float32 still judges, where memory allows.",
)
@click.option("--offload", is_flag=True, help="Keep on the device only the model that is at work.")
@click.option("--negative-controls", is_flag=True, help="Make mistakes on purpose, each of which must be caught.")
@click.option("--require-loaded", is_flag=True, help="Fail unless diffusers' own loader makes the same change.")
@click.option(
    "--skip", callback=options.words, metavar="ROUTES", help="Leave out loaded, converted, merged or extracted."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR", help="Write a page, a contact sheet and the JSON here."
)
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Where merged weights are put for the while."
)
@click.option(
    "--config", metavar="DIR", help="For a single-file PIPELINE: a pipeline folder to take configurations from."
)
@click.option("--tokenizer", multiple=True, metavar="[NAME=]DIR", help="For a single-file PIPELINE: its tokenizer.")
@click.option("--prediction-type", metavar="WORD", help="For a single-file PIPELINE: epsilon or v_prediction.")
@click.option("--variant", metavar="NAME", help="Take this variant of the pipeline's weights, such as fp16.")
@click.option("--overwrite", is_flag=True, help="Replace the report if it is there.")
@options.dry_run
@options.allow_partial
@options.architecture
@options.unsafe_pickle
@speaks
def command(
    pipeline: str,
    loras: tuple[str, ...],
    manner: Manner,
    *,
    to: tuple[str, ...],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    skip: tuple[str, ...] | None,
    tokenizer: tuple[str, ...],
    dry_run: bool,
    **how: Any,
) -> None:
    """Do all ways of an adapter into a pipeline give the same pictures?

    The same prompt and seed is drawn with the adapter loaded by diffusers, converted to other formats, merged, and
    extracted again. Each is compared with the adapter's own change: every module's, the denoiser's outputs, latents and
    pictures, beside a measured noise floor. Exit code 1 where the verdict is fail or inconclusive.
    """
    from loratools.operations.merging.scales import weighted
    from loratools.operations.validate import PROMPT, validate

    def tell(line: str) -> None:
        if not manner.quiet:
            sys.stderr.write(f"{visible(line)}\n")
            sys.stderr.flush()

    given = [weighted(item) for item in loras]
    how |= {"to": to or None, "skip": skip or (), "prompts": prompts or (PROMPT,), "seeds": seeds or (0,)}
    if dry_run:
        from loratools.operations.validation.plan import plan_validate

        emit(plan_validate(pipeline, given, tokenizer=tokenizer or None, **how).to_dict(), manner, plan_view)
        return
    result = validate(pipeline, given, tokenizer=tokenizer or None, progress=tell, **how)
    emit(result.to_dict(), manner, view)
    if not result.passed:
        click.get_current_context().exit(1)


def plan_view(page: Page, document: Document, manner: Manner) -> None:  # noqa: ARG001 - a view's signature
    """What would be drawn by which routes, and what it takes."""
    page.line("plan (nothing was drawn or written)", strong=True)
    page.facts(
        [
            ("pipeline", f"{document['pipeline']} ({document['architecture'] or 'unknown architecture'})"),
            ("routes", ", ".join(document["routes"])),
            ("passes", " then ".join(document["passes"])),
            ("pictures a route", document["pictures"]),
            ("memory", f"about {human_bytes(document['memory'])}, {human_bytes(document['free_memory'])} free"),
            ("disk", f"{human_bytes(document['disk'])} for merged weights, {human_bytes(document['free_disk'])} free"),
        ]
    )
    page.line("")
    adapter_rows(page, document)
    page.notes("no such route", [f"{row['route']}: {row['why']}" for row in document["not_held"]])
    page.notes("warnings", document["warnings"])


def view(page: Page, document: Document, manner: Manner) -> None:
    """The verdict and why, one row a route, noise, laws, controls, and what is wrong with which modules."""
    page.line(f"{document['verdict']}: {document['reasons'][0]}", strong=True)
    for reason in document["reasons"][1:]:
        page.line(f"  {reason}")
    page.line("")
    allowed = document["tolerance"]
    page.facts(
        [
            ("pipeline", f"{document['pipeline']['path']} ({document['pipeline']['class']})"),
            *(("adapter", _adapter(item)) for item in document["adapters"]),
            ("drawn", _drawn(document)),
            ("effect", f"the adapters change the latents by {_figure(document['effect'])}"),
            ("allowed", f"{allowed['modules']:g} a module, {allowed['latents']:g} of the latents"),
            ("judged in", document["judged_in"]),
        ]
    )
    page.line("")
    narrow = document["judged_in"] != document["dtype"]
    headings = ["route", "status", ">modules", ">worst", ">denoiser", ">latents", ">8-bit"]
    headings += [f">latents {document['dtype']}"] if narrow else []
    page.table((*headings, ">s", ">peak"), [_route(row, narrow=narrow) for row in document["routes"]])
    _remarks(page, document, manner)
    page.line("")
    page.table(
        ("noise floor", ">denoiser", ">latents", ">8-bit", "what"),
        [
            (row["floor"], _most(row["denoiser"]), _most(row["latents"]), _eight(row), row["explains"])
            for row in document["floors"]
        ],
    )
    page.line("")
    page.table(
        ("law", "holds", ">measured", ">allowed", "what"),
        [
            (row["law"], "yes" if row["holds"] else "NO", _figure(row["error"]), f"{row['limit']:g}", row["explains"])
            for row in document["scale"]
        ],
    )
    _controls(page, document, narrow=narrow)
    page.notes("warnings", document["warnings"])
    if document["report"]:
        page.line("")
        page.line(f"report: {document['report'][0]}")


def _adapter(row: Document) -> str:
    kinds = ", ".join(row["kinds"])
    return f"{row['path']} at {row['scale']:g} ({row['format']}, {kinds}, {row['adapters']:,} modules)"


def _drawn(document: Document) -> str:
    how = document["parameters"]
    scenes = len(document["scenes"])
    pictures = plural(scenes, "picture")
    scheduler = f", {how['scheduler']}" if how["scheduler"] else ""
    size = "×".join(map(str, how["size"])) + ", " if how["size"] else ""
    where = f"{document['dtype']} on {document['versions']['device']}"
    return f"{pictures} a route, {size}{plural(how['steps'], 'step')}{scheduler}, {where}"


def _route(row: Document, *, narrow: bool) -> tuple[str, ...]:
    modules, judged = row["modules"], row["judged"]
    cells = [
        row["route"],
        row["status"].upper() if row["status"] == "fail" else row["status"],
        f"{modules['right']:,} of {modules['of']:,}" if modules else "",
        _figure(modules["worst"]) if modules else "",
        _most(judged["denoiser"]) if judged else "",
        _most(judged["latents"]) if judged else "",
        _eight(judged) if judged else "",
    ]
    if narrow:
        cells.append(_most(row["in_dtype"]["latents"]) if row["in_dtype"] else "")
    return (*cells, f"{row['seconds']:.1f}", human_bytes(row["peak_bytes"]))


def _remarks(page: Page, document: Document, manner: Manner) -> None:
    lines = [f"{row['route']}: {text}" for row in document["routes"] for text in row["remarks"]]
    page.notes("about the routes", lines, most=None if manner.verbose else SHOWN)
    for row in document["routes"]:
        wrong = row["modules"]["wrong_modules"] if row["modules"] else []
        shown = wrong if manner.verbose else wrong[:SHOWN]
        if shown:
            page.line("")
            page.table(
                (f"modules that {row['route']} gets wrong", "is", ">error", ">times"),
                [(item["module"], item["is"], _figure(item["error"]), _figure(item["ratio"])) for item in shown],
            )
        if len(shown) < len(wrong):
            page.line(f"and {len(wrong) - len(shown):,} more (all with -v or --json)")
    page.notes("no such route", [f"{row['route']}: {row['why']}" for row in document["not_held"]])


def _controls(page: Page, document: Document, *, narrow: bool) -> None:
    """One row a mistake: what it did, whether it was caught, and whether the dtype alone could have seen it."""
    if not document["controls"]:
        return
    page.line("")
    headings = ["mistake on purpose", "caught", ">modules", ">latents", "seen in the latents"]
    headings += [f">latents {document['dtype']}", f"seen in {document['dtype']}"] if narrow else []
    rows = []
    for row in document["controls"]:
        cells = [
            row["control"],
            "yes" if row["caught"] else "NO",
            _figure(row["modules"]),
            _figure(row["latents"]),
            "yes" if row["caught_by_latents"] else "no",
        ]
        if narrow:
            cells += [_figure(row["latents_in_dtype"]), "yes" if row["seen_in_dtype"] else "no"]
        rows.append((*cells, row["explains"]))
    page.table((*headings, "where"), rows)


def _most(values: list[float | None]) -> str:
    """The largest of some errors; an infinite one is null in the document."""
    if not values:
        return ""
    return (
        "infinite"
        if any(value is None for value in values)
        else _figure(max(value for value in values if value is not None))
    )


def _eight(row: Document) -> str:
    found = [picture["eight_bit"] for picture in row["pictures"] if picture]
    return str(max(found)) if found else ""


def _figure(value: float | None) -> str:
    return "infinite" if value is None else "0" if value == 0 else f"{value:.2g}"
