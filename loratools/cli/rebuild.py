"""`loratools rebuild`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli.merge import adapter_rows, change_facts, unmerged
from loratools.cli.merging_options import merging
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, plural
from loratools.errors import UsageError

SHOWN = 8  # lines of a list on a page


@click.command("rebuild")
@click.argument("base", metavar="BASE", required=False)
@click.argument("loras", metavar="LORA[=SCALE]…", nargs=-1)
@click.option("-o", "--out", metavar="DIR", help="The pipeline folder to write.")
@click.option(
    "--single-file",
    metavar="FILE",
    help="Write one .safetensors file under LDM names, as web UIs load it (also: only).",
)
@click.option(
    "--config",
    metavar="DIR",
    help="For a single-file BASE: a pipeline folder whose configurations are taken, its tokenizers, and the weights of "
    "components that BASE lacks.",
)
@click.option(
    "--tokenizer",
    multiple=True,
    metavar="[NAME=]DIR",
    help="For a single-file BASE: a folder with the tokenizer (tokenizer_2=DIR for the second).",
)
@click.option(
    "--prediction-type",
    metavar="WORD",
    help="For a single-file BASE: epsilon or v_prediction, where the file does not tell.",
)
@click.option("--variant", metavar="NAME", help="Take this variant of the weights alone, such as fp16.")
@click.option("--copy", is_flag=True, help="Copy unchanged weights instead of making hard links.")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Load the result with diffusers and run one step."
)
@merging
@speaks
def command(
    base: str | None,
    loras: tuple[str, ...],
    manner: Manner,
    *,
    out: str | None,
    single_file: str | None,
    stochastic_rounding: bool,
    seed: int,
    check: bool,
    overwrite: bool,
    dry_run: bool,
    if_needed: bool,
    threads: int,
    **how: Any,
) -> None:
    """A complete pipeline with adapters merged in, loaded and run once.

    BASE is a pipeline folder, a single-file checkpoint, owner/name on the Hub, or auto: the base that the first adapter
    names. Without an adapter BASE itself is written. The folder loads with DiffusionPipeline.from_pretrained.
    """
    from loratools.operations.merging.scales import weighted
    from loratools.operations.rebuild import plan_rebuild

    if base is None:
        raise UsageError("BASE is missing", hint="loratools rebuild BASE LORA=0.8 -o DIR")
    if out is None and single_file is None and not dry_run:
        raise UsageError("no output was named", hint="-o DIR, --single-file FILE, or both")
    pending = plan_rebuild(
        base, [weighted(item) for item in loras], stochastic_seed=seed if stochastic_rounding else None, **how
    )
    if dry_run:
        plan = pending.preview(out, single_file=single_file, overwrite=overwrite)
        emit(plan.to_dict(), manner, plan_view)
        return
    with Progress("rebuild", quiet=manner.quiet) as progress:
        result = pending.save(
            out,
            single_file=single_file,
            check=check,
            overwrite=overwrite,
            if_needed=if_needed,
            threads=threads,
            progress=progress,
        )
    emit(result.to_dict(), manner, view)


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be read, changed, linked, copied, written and left out."""
    page.line("plan (nothing was written)", strong=True)
    sums = {name: (len(document[name]), sum(row["bytes"] for row in document[name])) for name in _HOW}
    page.facts(
        [
            ("base", f"{document['base']} ({document['architecture'] or 'unknown architecture'})"),
            ("pipeline", document["pipeline"]),
            ("variants", _variants(document)),
            ("write", document["path"]),
            ("single file", document["single_file"]),
            ("tensors changed", f"{document['changed']:,}"),
            ("tensors cast", document["cast"] or None),
            *((word, f"{plural(count, 'file')}, {human_bytes(size)}") for word, (count, size) in sums.items() if count),
            ("peak memory", f"about {human_bytes(document['peak_memory'])}, and the pipeline's where it is checked"),
            ("free disk", None if document["free_disk"] is None else human_bytes(document["free_disk"])),
        ]
    )
    _adapters(page, document)
    if manner.verbose:
        rows = [(row["name"], name, human_bytes(row["bytes"])) for name in _HOW for row in document[name]]
        page.line("")
        page.table(("file", "how", ">size"), sorted(rows))
    _remarks(page, document, manner)


_HOW = ("written", "linked", "copied")


def view(page: Page, document: Document, manner: Manner) -> None:
    """What was merged, written and linked, and what the trial showed."""
    places = " and ".join(place for place in (document["path"], document["single_file"]) if place)
    if document["skipped"]:
        page.line(f"{places}: made from these inputs in this way: nothing to do")
        return
    sizes = " and ".join(human_bytes(size) for size in (document["size"], document["single_size"]) if size)
    page.line(f"{places}: {document['pipeline']}, {sizes}", strong=True)
    cast = f", {document['cast']:,} cast" if document["cast"] else ""
    links = len(document["linked"])
    linked = f"; {plural(links, 'file')} not copied but hard-linked" if links else ""
    page.line(f"{plural(document['changed'], 'tensor')} changed{cast}{linked}")
    for name, what in (("trial", "the folder"), ("single_trial", "the single file")):
        _trial(page, document[name], what)
    _adapters(page, document)
    if document["layers"]:
        page.line("")
        page.facts(change_facts(document))
    _remarks(page, document, manner)


def _trial(page: Page, trial: Document | None, what: str) -> None:
    """What diffusers made of an output."""
    if trial is None:
        return
    count = sum(trial["tensors"].values())
    size = f"; one step at {trial['pixels'][0]} × {trial['pixels'][1]} pixels" if trial["pixels"] else ""
    page.line(f"diffusers loads {what}: {count:,} tensors of {', '.join(trial['tensors'])}, each as written{size}")


def _variants(document: Document) -> str | None:
    named = [name or "plain" for name in document["variants"]]
    return ", ".join(named) if named != ["plain"] else None


def _adapters(page: Page, document: Document) -> None:
    if document["adapters"]:
        page.line("")
        adapter_rows(page, document)


def _remarks(page: Page, document: Document, manner: Manner) -> None:
    most = None if manner.verbose else SHOWN
    page.notes("not merged", unmerged(document), most=most)
    page.notes("left out", document["left_out"], most=most)
    page.notes("warnings", document["warnings"])
