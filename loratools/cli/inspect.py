"""`loratools inspect`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, counted
from loratools.cli.several import answer, expanded, references
from loratools.cli.text import human_bytes
from loratools.errors import UsageError

SHOWN = 20  # unknown keys on a page


@click.command("inspect")
@references("REF...")
@click.option("--modules", is_flag=True, help="List every adapter.")
@click.option("--weights", is_flag=True, help="Read the values too: NaN, norms, spectra.")
@options.plot
@options.replot
@options.runtime("Say of every key whether RUNTIME loads it, and why not.")
@click.option("--strict", is_flag=True, help="Exit 3 where a key is unknown.")
@options.architecture
@options.unsafe_pickle
@options.threads
@speaks
def command(refs: tuple[str, ...], manner: Manner, *, strict: bool, **how: Any) -> None:
    """What is in a file?

    REF is a file or a folder. Only headers and scalars are read, unless --weights asks for more. Of several REFs each
    is answered; one that fails leaves its error in its place, and its exit code. The page says how many adapters each
    runtime loads with the right delta. --plot reads the values, as --weights does, and draws norms and spectra.
    """
    from loratools.operations.inspect import inspect

    refs = expanded(refs)
    if how["plot"] is not None and len(refs) > 1:
        raise UsageError(f"one plot cannot show {len(refs)} files", hint="call it once for each")

    answer(
        refs,
        "loratools.inspect/1",
        lambda ref: inspect(ref, **how).to_dict(),
        view,
        manner,
        code_of=lambda document: 3 if strict and strangers(document) else 0,
    )


def _alpha(alpha: Document) -> str | None:
    """The values and where they came from; of a file on the Hub the tensors that hold them may be unread."""
    if not alpha.get("values"):
        return alpha["source"] if "not read" in (alpha.get("source") or "") else None
    return _with(counted(alpha["values"]), "from", alpha["source"])


def strangers(document: Document) -> list[str]:
    """The unknown keys that no table excuses."""
    return [item["key"] for item in document["unknown_keys"] if item["class"] != "known-harmless"]


def view(page: Page, document: Document, manner: Manner) -> None:
    """What a file is, what is in it, and what was noticed."""
    page.line(document["path"], strong=True)
    alpha = document["alpha"] or {}
    page.facts(
        [
            ("role", document["role"]),
            ("format", _with(document["format"], "written by", document["producer"])),
            ("architecture", _architecture(document)),
            ("variant", document["variant"]),
            ("kinds", ", ".join(document["kinds"])),
            ("components", ", ".join(f"{name} ({count:,})" for name, count in document["components"].items())),
            ("adapters", document["adapters"] or None),
            ("tensors", f"{document['tensors']:,}, {human_bytes(document['size'])}"),
            ("parameters", f"{document['parameters']:,}"),
            ("dtypes", counted(document["dtypes"]) if document["dtypes"] else None),
            ("rank", counted(document["ranks"]) if document["ranks"] else None),
            ("alpha", _alpha(alpha)),
            ("scale", counted(alpha["scales"]) if alpha.get("scales") else None),
            *((f"in {name}", _share(share)) for name, share in document["loaders"].items()),
            ("base model", document["base_model"]),
            ("trigger words", ", ".join(document["trigger_words"])),
            *(() if manner.verbose else [("metadata entries", len(document["metadata"]) or None)]),
        ]
    )
    if manner.verbose and document["metadata"]:
        page.line("")
        page.line("metadata", strong=True)
        page.facts(document["metadata"].items())
    if document.get("modules"):
        page.line("")
        page.table(
            ("component", "module", "kind", ">rank", ">alpha", ">scale", "weight"),
            [
                (
                    row["component"],
                    " + ".join(row["paths"]),
                    row["kind"],
                    row["rank"],
                    row["alpha"],
                    "not read" if row["scale"] is None else f"{row['scale']:g}",
                    " x ".join(map(str, row["weight_shape"] or ())),
                )
                for row in document["modules"]
            ],
        )
    if "loading" in document:
        _loading(page, document, manner)
    if "weights" in document:
        _weights(page, document["weights"])
    most = None if manner.verbose else SHOWN
    page.notes("unknown keys", (f"{item['key']} ({item['class']})" for item in document["unknown_keys"]), most=most)
    page.notes("warnings", document["warnings"])
    if manner.verbose:
        page.notes("evidence", document["evidence"])
    if "plot" in document:
        page.line("")
        page.line(f"plot: {document['plot']}")


def _architecture(document: Document) -> str:
    settled, others = document["architecture"], document["candidates"]
    if settled:
        return _with(settled, "or", " or ".join(name for name in others if name != settled)) or settled
    return f"not settled: {' or '.join(others)}" if others else "unknown"


def _share(share: Document) -> str:
    """`912 of 986: why the others are not, most frequent reason first`."""
    unknown = f", {share['unknown']:,} not known" if share["unknown"] else ""
    first = f": {share['reasons'][0]['reason']}" if share["reasons"] else ""
    return f"{share['loaded']:,} of {share['of']:,}{unknown}{first}"


def _loading(page: Page, document: Document, manner: Manner) -> None:
    """The keys of `--for`, by the reason why they are not loaded; those that are loaded only with -v."""
    runtime = document["loading"]["runtime"]
    evidence = {row["reason"]: row["evidence"] for row in document["loaders"][runtime]["reasons"]}
    grouped: dict[str, list[str]] = {}
    for row in document["loading"]["keys"]:
        grouped.setdefault(row["reason"] or "loaded", []).append(row["key"])
    page.line("")
    page.table(
        (f"in {runtime}", ">keys", "how it is known"),
        [(reason, f"{len(keys):,}", evidence.get(reason)) for reason, keys in grouped.items()],
    )
    for reason, keys in grouped.items():
        if reason != "loaded" or manner.verbose:
            page.notes(reason, keys, most=None if manner.verbose else SHOWN)


def _weights(page: Page, weights: Document) -> None:
    page.line("")
    page.facts(
        [
            ("norm of the delta", f"{weights['norm']:.6g}"),
            ("dead modules", ", ".join(weights["dead"])),
            ("NaN or infinite", weights["non_finite"] or None),
            ("not measured", weights["not_measured"] or None),
        ]
    )
    page.table(
        ("module", ">norm", ">largest singular value", ">effective rank"),
        [
            (
                row["module"],
                _figure(row["norm"]),
                _figure(row["singular_values"][0] if row["singular_values"] else None),
                _figure(row["effective_rank"]),
            )
            for row in weights["modules"]
        ],
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _with(value: str | None, word: str, addition: str | None) -> str | None:
    return f"{value} ({word} {addition})" if value and addition else value
