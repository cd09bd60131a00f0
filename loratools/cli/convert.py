"""`loratools convert`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, plural
from loratools.errors import UsageError

# How people spell a dtype on the command line, kohya's words among them → how safetensors spells it.
DTYPES = {
    "float16": "F16", "fp16": "F16", "half": "F16",
    "bfloat16": "BF16", "bf16": "BF16",
    "float32": "F32", "fp32": "F32", "float": "F32",
}  # fmt: skip


def _formats(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from loratools.operations import catalogue

    names = [row["id"] for row in catalogue.supported_formats().rows]
    return [name for name in (*names, "original") if name.startswith(incomplete)]


def _words(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(word.strip() for word in value.split(",") if word.strip())


@click.command("convert")
@click.argument("ref", metavar="IN", required=False)
@click.argument("out", metavar="OUT", required=False)
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    shell_complete=_formats,
    help="A format of `loratools formats`, or original.",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), metavar="DTYPE", help="Cast to float16, bfloat16 or float32.")
@click.option(
    "--alpha",
    type=click.Choice(["keep", "fold"]),
    default="keep",
    show_default=True,
    help="Carry alphas as they are, or multiply them into the factors.",
)
@click.option("--components", callback=_words, metavar="NAME,...", help="Only these: unet, text_encoder, ...")
@click.option(
    "--clip-prefix",
    type=click.Choice(["text_model", "none"]),
    help="How a PEFT folder spells CLIP: with the text_model level (transformers < 5.6), or without.",
)
@options.allow_lossy
@options.allow_partial
@options.architecture
@options.unsafe_pickle
@options.overwrite
@options.dry_run
@options.if_needed
@options.threads
@click.option("--models", hidden=True, metavar="IN", help="kohya's word for IN.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--save_precision", hidden=True, type=click.Choice(list(DTYPES)), help="kohya's word for --dtype.")
@speaks
def command(
    ref: str | None,
    out: str | None,
    manner: Manner,
    *,
    models: str | None,
    save_to: str | None,
    save_precision: str | None,
    overwrite: bool,
    dry_run: bool,
    if_needed: bool,
    threads: int,
    dtype: str | None,
    **how: Any,
) -> None:
    """Write an adapter in another format, and prove it.

    IN is a file or a folder; OUT is a .safetensors file, or a folder for peft. The output is opened again and compared
    with the input, module by module, before it appears under its name.
    """
    from loratools.operations.convert import convert

    if models is not None:
        ref, out = models, out if out is not None else ref
    source, target = _given(ref, "IN"), save_to if save_to is not None else out
    spelt = dtype or save_precision
    pending = convert(source, dtype=None if spelt is None else DTYPES[spelt], **how)
    if dry_run:
        emit(pending.plan.to_dict(), manner, plan_view)
        return
    with Progress("convert", quiet=manner.quiet) as progress:
        result = pending.save(
            _given(target, "OUT"), overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress
        )
    emit(result.to_dict(), manner, view)


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise UsageError(f"{name} is missing", hint="see loratools convert --help")
    return value


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be read, done, written and lost."""
    page.line("plan (nothing was written)", strong=True)
    page.facts(
        [
            ("read", f"{document['source']} ({document['source_format']}, {plural(document['adapters'], 'adapter')})"),
            ("write", document["format"]),
            ("architecture", document["architecture"]),
            ("tensors renamed", f"{document['renamed']:,}"),
            ("tensors computed", f"{document['computed']:,}"),
            *((f"adapters: {what}", f"{count:,}") for what, count in document["steps"].items()),
            ("peak memory", human_bytes(document["peak_memory"])),
        ]
    )
    page.line("")
    page.table(
        ("file", ">tensors", ">size"),
        [(item["name"] or "OUT", f"{item['tensors']:,}", human_bytes(item["bytes"])) for item in document["files"]],
    )
    page.notes("lost", document["lost"])
    page.notes("notes", document["notes"])
    if manner.verbose:
        page.notes("regrouped", document["details"])


def view(page: Page, document: Document, manner: Manner) -> None:
    """What was written and how it was proven."""
    if document["skipped"]:
        page.line(f"{document['path']} was made from this input in this way: nothing to do")
        return
    page.line(f"{document['path']}: {document['format']}, {human_bytes(document['size'])}", strong=True)
    page.line(f"proven from the output as re-opened: {proven(document['proof'])}")
    if manner.verbose:
        page.facts(
            [
                ("architecture", document["architecture"]),
                ("sha256 of the data", document["payload_sha256"]),
                ("worst module", document["proof"]["worst_module"]),
            ]
        )
    page.notes("lost", document["lost"])
    page.notes("warnings", document["warnings"])


def proven(proof: Document) -> str:
    """`986 modules identical, 2 modules measured (worst relative error 3.1e-08)`."""
    parts = [f"{plural(proof[way], 'module')} {way}" for way in ("identical", "exact", "measured") if proof[way]]
    worst = f" (worst relative error {proof['worst']:.2g})" if proof["measured"] else ""
    return (", ".join(parts) or "no modules") + worst
