"""`loratools convert`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.arguments import given
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes, plural
from loratools.errors import UsageError, nearest

# How people spell a dtype on the command line, kohya's words among them → how safetensors spells it.
DTYPES = {
    "float16": "F16", "fp16": "F16", "f16": "F16", "half": "F16",
    "bfloat16": "BF16", "bf16": "BF16",
    "float32": "F32", "fp32": "F32", "f32": "F32", "float": "F32",
}  # fmt: skip

# What regrouping did to an adapter → how a page says it.
STEPS = {"untouched": "as they are", "slice": "cut", "narrow": "cut out of their blocks", "pad": "padded",
         "share": "joined", "block": "joined in blocks", "fold": "multiplied by their scale"}  # fmt: skip
SHOWN = 8  # regroupings on a page


def known_formats() -> list[str]:
    """The words that --to takes."""
    from loratools.operations import catalogue

    return [*(row["id"] for row in catalogue.supported_formats().rows), "original"]


def _formats(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in known_formats() if name.startswith(incomplete)]


def dtype_word(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A dtype as people spell it, as safetensors does; a callback of an option."""
    if value is None:
        return None
    if value.lower() not in DTYPES:
        hint = nearest(value.lower(), DTYPES) or "float16, bfloat16 or float32"
        raise UsageError(f"{parameter.opts[0]}: unknown dtype {value!r}", hint=hint)
    return DTYPES[value.lower()]


@click.command("convert")
@click.argument("ref", metavar="IN", required=False)
@click.argument("out", metavar="OUT", required=False)
@click.option(
    "--to",
    metavar="FORMAT",
    shell_complete=_formats,
    help="A format of `loratools formats`, or original. One of --to and --for is required.",
)
@options.runtime("Write what RUNTIME loads: the format, alpha policy and components that are right for it.")
@click.option("--dtype", callback=dtype_word, metavar="DTYPE", help="Cast to float16, bfloat16 or float32.")
@click.option(
    "--alpha",
    type=click.Choice(["keep", "fold"]),
    default="keep",
    show_default=True,
    help="Carry alphas as they are, or multiply them into the factors.",
)
@click.option("--components", callback=options.words, metavar="NAME,...", help="Only these: unet, text_encoder, ...")
@click.option(
    "--clip-prefix",
    type=click.Choice(["text_model", "none"]),
    help="How a PEFT folder spells CLIP: with the text_model level (transformers < 5.6), or without.",
)
@click.option(
    "--names",
    type=click.Choice(["split", "whole"]),
    help="A language model's layers one by one (split), or as transformers 5 has them: experts in one parameter.",
)
@click.option(
    "--to-kind",
    type=click.Choice(["lora"]),
    help="Make every layer a plain LoRA, exactly or by SVD; the error is measured and printed.",
)
@click.option("--rank", type=click.IntRange(1), metavar="N", help="With --to-kind: no layer above this rank.")
@click.option(
    "--error",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="E",
    help="With --to-kind: the relative error that an SVD may make in a layer (1e-5).",
)
@click.option("--base", metavar="BASE", help="With --to-kind: the base model, for DoRA, IA3, GLoRA, OFT and BOFT.")
@options.allow_lossy
@options.allow_partial
@options.allow_nonfinite
@options.architecture
@options.unsafe_pickle
@options.overwrite
@options.dry_run
@options.if_needed
@options.threads
@click.option("--models", hidden=True, metavar="IN", help="kohya's word for IN.")
@click.option("--save_to", hidden=True, metavar="OUT", help="kohya's word for OUT.")
@click.option("--save_precision", hidden=True, callback=dtype_word, metavar="DTYPE", help="kohya's word for --dtype.")
@speaks
def command(
    ref: str | None,
    out: str | None,
    manner: Manner,
    *,
    to: str | None,
    runtime: str | None,
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

    IN is a file or a folder; OUT is a .safetensors file, a .gguf file for gguf, or a folder for mlx and peft. The
    output is opened again and compared with the input, module by module, before it appears under its name.
    """
    from loratools.operations.convert import convert

    if models is not None:
        ref, out = models, out if out is not None else ref
    source, target = given(ref, "IN"), save_to if save_to is not None else out
    if not dry_run:
        target = given(target, "OUT")
    if not to and not runtime:
        raise UsageError("--to FORMAT or --for RUNTIME is missing", hint=f"formats: {', '.join(known_formats())}")
    if to and runtime:
        raise UsageError("--to and --for do not go together", hint="--for picks the format")
    pending = convert(source, to=to or None, runtime=runtime, dtype=dtype or save_precision, threads=threads, **how)
    if dry_run:
        plan = pending.preview(target, overwrite=overwrite) if target else pending.plan
        emit(plan.to_dict(), manner, plan_view)
        return
    with Progress("convert", quiet=manner.quiet) as progress:
        result = pending.save(
            given(target, "OUT"), overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress
        )
    emit(result.to_dict(), manner, view)


def plan_view(page: Page, document: Document, manner: Manner) -> None:
    """What would be read, done, written and lost."""
    page.line("plan (nothing was written)", strong=True)
    page.facts(
        [
            ("read", f"{document['source']} ({document['source_format']}, {plural(document['adapters'], 'adapter')})"),
            ("write", f"{document['path']} ({document['format']})" if document["path"] else document["format"]),
            ("architecture", document["architecture"]),
            ("tensors renamed", f"{document['renamed']:,}"),
            ("tensors computed", f"{document['computed']:,}"),
            *((f"adapters {STEPS.get(what, what)}", f"{count:,}") for what, count in document["steps"].items()),
            ("peak memory", f"about {human_bytes(document['peak_memory'])}"),
            ("free disk", None if document["free_disk"] is None else human_bytes(document["free_disk"])),
        ]
    )
    page.line("")
    page.table(
        ("file", ">tensors", ">size"),
        [(item["name"] or "OUT", f"{item['tensors']:,}", human_bytes(item["bytes"])) for item in document["files"]],
    )
    page.notes("as plain LoRA", costs(document["to_kind"]), most=None if manner.verbose else SHOWN)
    page.notes("lost", document["lost"])
    page.notes("notes", document["notes"])
    page.notes("regrouped", document["details"], most=None if manner.verbose else SHOWN)


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
    if document["to_kind"]:
        page.line(converted(document["to_kind"]))
        if manner.verbose:
            page.notes("as plain LoRA", costs(document["to_kind"]))
    page.notes("lost", document["lost"])
    page.notes("warnings", document["warnings"])


def converted(rows: list[Document]) -> str:
    """`14 layers as plain LoRA: 11 exactly, 3 by SVD (worst relative error 9.1e-06: unet:conv_in)`."""
    decomposed = [row for row in rows if not row["exact"]]
    parts = [f"{len(rows) - len(decomposed)} exactly"] if len(decomposed) < len(rows) else []
    if decomposed:
        worst = max(decomposed, key=lambda row: row["error"])
        parts.append(f"{len(decomposed)} by SVD (worst relative error {worst['error']:.2g}: {worst['module']})")
    return f"{plural(len(rows), 'layer')} as plain LoRA: {', '.join(parts)}"


def costs(rows: list[Document]) -> list[str]:
    """One line a layer, the worst first; those whose error is not known yet before them."""
    ordered = sorted(rows, key=lambda row: -1.0 if row["error"] is None else -row["error"])
    return [f"{row['module']}: {row['from']} at rank {_rank(row)}" for row in ordered]


def _rank(row: Document) -> str:
    if row["error"] is None and not row["exact"]:
        return f"{row['rank']} or less, by SVD"
    return f"{row['rank']}, " + ("exactly" if row["exact"] else f"relative error {row['error']:.2g}")


def proven(proof: Document) -> str:
    """`986 modules identical, 2 modules measured (worst relative error 3.1e-08)`."""
    parts = [f"{plural(proof[way], 'module')} {way}" for way in ("identical", "exact", "measured") if proof[way]]
    worst = f" (worst relative error {proof['worst']:.2g})" if proof["measured"] else ""
    return (", ".join(parts) or "no modules") + worst
