"""`loratools recipe`."""

from __future__ import annotations

import click

from loratools.cli import options
from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Progress
from loratools.cli.render import Document, Page, emit, write


@click.group("recipe")
def command() -> None:
    """How an output was made, and the same output once more.

    A recipe is a YAML document: `operation` (convert, merge, extract, resize, combine, rebuild), `inputs` (each with
    its `role`: input, base, tuned, adapter or config; `name`, `scale`, and `files` with name and sha256), `parameters`
    under the names of the Python verb, `versions`, and `output` with its files. Unknown keys are refused.
    """


@command.command("show")
@click.argument("output", metavar="OUTPUT", type=click.Path())
@speaks
def show(output: str, manner: Manner) -> None:
    """The recipe of an output, from its own record."""
    from loratools.operations.recipe import recipe_of, written_recipe

    recipe = recipe_of(output)
    if manner.json:
        emit(recipe.to_dict(), manner, view)
    else:
        write(written_recipe(recipe))


@command.command("run")
@click.argument("recipe", metavar="FILE", type=click.Path())
@click.option("-o", "--output", "out", type=click.Path(), metavar="OUT", help="Where; else its own name beside FILE.")
@click.option("--inputs", "folders", type=click.Path(), multiple=True, metavar="DIR", help="Where the inputs may lie.")
@options.overwrite
@options.threads
@speaks
def run(
    recipe: str, manner: Manner, *, out: str | None, folders: tuple[str, ...], overwrite: bool, threads: int
) -> None:
    """Make the output of a recipe; exit code 1 if its bytes are others than the recipe states."""
    from loratools.operations.recipe import run_recipe

    with Progress("recipe", quiet=manner.quiet) as progress:
        done = run_recipe(recipe, out, folders=folders, overwrite=overwrite, threads=threads, progress=progress)
    emit(done.to_dict(), manner, view)
    if done.same_bytes is False:
        click.get_current_context().exit(1)


def view(page: Page, document: Document, manner: Manner) -> None:  # noqa: ARG001 (every view takes it)
    """Whether the bytes are those of the recipe."""
    verdict = {True: "the bytes that the recipe states", False: "other bytes than the recipe states", None: "made"}
    page.line(f"{document['path']}: {verdict[document['same_bytes']]}", strong=True)
    page.notes("other than stated", document["differing"])
