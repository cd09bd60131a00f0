"""`loratools push`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page, emit
from loratools.cli.text import visible
from loratools.errors import UsageError


@click.command("push")
@click.argument("path", metavar="FILE|FOLDER", type=click.Path())
@click.argument("repository", metavar="REPO")
@click.option("--base-model", metavar="ID", help="The base model on the Hub, where the files do not name it.")
@click.option("--image", "images", multiple=True, metavar="FILE[=PROMPT]", help="A picture for the card's gallery.")
@click.option("-m", "--message", metavar="TEXT", help="The commit's message.")
@click.option("--create-pr", is_flag=True, help="Offer it as a pull request; the repository must be there.")
@click.option("--private", is_flag=True, help="Make the repository a private one, if it has to be made.")
@click.option("--strip-private", is_flag=True, help="Take private metadata out of what is sent.")
@click.option("-y", "--yes", is_flag=True, help="Send private metadata, too.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and the card; send nothing.")
@speaks
def command(path: str, repository: str, manner: Manner, *, images: tuple[str, ...], **how: Any) -> None:
    """Put an adapter on the Hub, with a model card.

    REPO is owner/name (hf://owner/name@branch for a branch) and is made if it is not there. The card names the base
    model, library, tags, words, hashes, and how the file was made; what stands on a card already stays. Metadata that
    tell of persons and machines are looked for first: on a terminal you are asked then, elsewhere nothing is sent
    without --yes or --strip-private.
    """
    from loratools.operations.push import push

    how["images"] = [_image(text) for text in images]
    try:
        done = push(path, repository, **how)
    except UsageError as error:
        if "private" not in error.evidence or not _is_watched(manner):
            raise
        done = push(path, repository, **{**how, **_asked(error)})
    document = done.to_dict()
    if done.private and not done.stripped and not manner.quiet:
        told = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in done.private.items())
        sys.stderr.write(f"warning: private metadata {'are sent' if done.sent else 'would be sent'}: {told}\n")
    emit(document, manner, view)


def _is_watched(manner: Manner) -> bool:
    """Whether there is somebody to be asked."""
    return not (manner.json or manner.quiet) and sys.stdin.isatty() and sys.stderr.isatty()


def _asked(error: UsageError) -> dict[str, bool]:
    """What to do about private metadata, as somebody at the terminal says; raises the error where they say stop."""
    sys.stderr.write(f"warning: {visible(error.message)}\n")
    choice = click.prompt(
        "strip takes them out of what is sent, send sends them",
        type=click.Choice(("strip", "send", "stop")),
        default="stop",
        err=True,
    )
    if choice == "stop":
        raise error
    return {"strip_private": choice == "strip", "yes": choice == "send"}


def _image(text: str) -> tuple[str, str]:
    if os.path.lexists(text):
        return text, ""
    file, _, prompt = text.partition("=")
    return file, prompt


def view(page: Page, document: Document, manner: Manner) -> None:
    """Where it is now, what was sent, and the card where nothing was."""
    page.line(document["pull_request"] or document["url"] or f"{document['repository']}: nothing was sent", strong=True)
    page.notes("files", document["files"])
    if document["commit"] is None or manner.verbose:
        page.line("")
        for line in document["card"].splitlines():
            page.line(line)
