"""`loratools pull`."""

from __future__ import annotations

import click

from loratools.cli import options
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import human_bytes


@click.command("pull")
@click.argument("ref", metavar="REF")
@click.option("-o", "--output", "out", type=click.Path(), metavar="DIR", help="Copy it into this folder.")
@click.option("--overwrite", is_flag=True, help="Replace files in DIR that are others.")
@options.unsafe_pickle
@speaks
def command(ref: str, out: str | None, manner: Manner, *, overwrite: bool, unsafe_pickle: bool) -> None:
    """Fetch a file, an adapter or a pipeline from the Hub.

    REF is hf://owner/name[@revision][/file], owner/name, or a web address. Without a file it is the adapter in the
    repository, with its configuration and card, or the pipeline that the repository is. Everything goes through the
    Hub's cache, and with HF_HUB_OFFLINE nothing else is asked. Prints the path to give to other commands, and every
    file with its SHA-256, compared with the one that the Hub states.
    """
    from loratools.operations.pull import pull

    emit(pull(ref, out, overwrite=overwrite, unsafe_pickle=unsafe_pickle).to_dict(), manner, view)


def view(page: Page, document: Document, manner: Manner) -> None:  # noqa: ARG001 (every view takes it)
    """Where it is now, of which commit, and every file."""
    page.line(document["path"], strong=True)
    page.facts([("from", document["reference"]), ("base model", document["base_model"])])
    page.table(
        ("file", ">size", "SHA-256", "as stated"),
        [
            (item["name"], human_bytes(item["size"]), item["sha256"], "yes" if item["stated"] else "none stated")
            for item in document["files"]
        ],
    )
