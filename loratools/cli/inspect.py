"""`loratools inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from loratools.cli import options
from loratools.cli.failures import print_message
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, counted, emit
from loratools.cli.text import plural
from loratools.errors import LoratoolsError

SCHEMA = "loratools.inspect/1"


@click.command("inspect")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--modules", is_flag=True, help="List every adapter.")
@click.option("--weights", is_flag=True, help="Read the values too: NaN, norms, spectra.")
@click.option("--strict", is_flag=True, help="Exit 3 where a key is unknown.")
@options.architecture
@options.unsafe_pickle
@speaks
def command(
    refs: tuple[str, ...],
    manner: Manner,
    *,
    modules: bool,
    weights: bool,
    strict: bool,
    arch: str | None,
    unsafe_pickle: bool,
) -> None:
    """What is in a file, and who loads it?

    REF is a file or a folder. Only headers and scalars are read, unless --weights asks for more. Of several REFs each
    is answered; one that fails leaves its error in its place, and its exit code.
    """
    from loratools.operations.inspect import inspect

    documents: list[dict[str, Any]] = []
    code = 0
    for ref in refs:
        try:
            found = inspect(ref, arch=arch, unsafe_pickle=unsafe_pickle, weights=weights, modules=modules)
        except LoratoolsError as error:
            if len(refs) == 1:
                raise
            documents.append(error.to_dict())
            code = code or error.exit_code
            if not manner.json:
                print_message(error)
            continue
        documents.append(found.to_dict())
        code = code or (3 if strict and strangers(documents[-1]) else 0)
    answer = documents[0] if len(documents) == 1 else {"schema": SCHEMA, "results": documents}
    emit(answer, manner, view)
    if code:
        click.get_current_context().exit(code)


def strangers(document: Document) -> list[str]:
    """The unknown keys that no table excuses."""
    return [item["key"] for item in document["unknown_keys"] if item["class"] != "known-harmless"]


def view(page: Page, document: Document, manner: Manner) -> None:
    """One page a file, in the order of the arguments."""
    for result in document.get("results", [document]):
        if result["schema"] == SCHEMA:
            _file(page, result, manner)


def _file(page: Page, document: Mapping[str, Any], manner: Manner) -> None:
    if page.blocks:
        page.line("")
    page.line(document["path"], strong=True)
    alpha = document.get("alpha") or {}
    others = [name for name in document.get("candidates", ()) if name != document.get("architecture")]
    page.facts(
        [
            ("role", document["role"]),
            ("format", _with(document.get("format"), "written by", document.get("producer"))),
            ("architecture", _with(document.get("architecture") or "not settled", "or", ", ".join(others))),
            ("variant", document.get("variant")),
            ("kinds", ", ".join(document.get("kinds", ()))),
            ("components", ", ".join(f"{name} ({count:,})" for name, count in document.get("components", {}).items())),
            ("adapters", f"{document.get('adapters', 0):,} in {plural(document['tensors'], 'tensor')}"),
            ("parameters", f"{document['parameters']:,}"),
            ("dtypes", counted(document.get("dtypes", {})) if document.get("dtypes") else None),
            ("rank", counted(document["ranks"]) if document.get("ranks") else None),
            ("alpha", _with(counted(alpha["values"]), "from", alpha["source"]) if alpha.get("values") else None),
            ("scale", counted(alpha["scales"]) if alpha.get("scales") else None),
            ("base model", document.get("base_model")),
            ("trigger words", ", ".join(document.get("trigger_words", ()))),
            ("metadata", plural(len(document["metadata"]), "entry").replace("entrys", "entries"))
            if document.get("metadata") and not manner.verbose
            else ("", None),
        ]
    )
    if document.get("loaders"):
        page.line("")
        page.table(
            ("loaded by", ">adapters", "why not all"),
            [
                (name, f"{share['loaded']:,} of {share['of']:,}", "; ".join(share["reasons"]))
                for name, share in document["loaders"].items()
            ],
        )
    if manner.verbose and document.get("metadata"):
        page.line("")
        page.line("metadata", strong=True)
        page.facts(document["metadata"].items())
    modules = document.get("modules") or ()
    if modules:
        page.line("")
        names = [name for name, value in modules[0].items() if not isinstance(value, (dict, list))]
        page.table(names, [[module.get(name) for name in names] for module in modules])
    page.notes("unknown keys", (f"{item['key']} ({item['class']})" for item in document.get("unknown_keys", ())))
    page.notes("warnings", document.get("warnings", ()))
    if manner.verbose:
        page.notes("evidence", (str(item) for item in document.get("evidence", ())))


def _with(value: str | None, word: str, addition: str | None) -> str | None:
    return f"{value} ({word} {addition})" if value and addition else value
