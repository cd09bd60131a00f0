"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from loratools.cli.text import is_terminal
from loratools.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


class Manner(NamedTuple):
    """How a command speaks: as JSON, quietly, at length."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


def manners(function: Function) -> Function:
    """--json, -q, -v and --debug, which may stand before the verb or after it."""
    for option in (
        click.option("--debug", is_flag=True, help="On failure print the traceback."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors."),
        click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document, also on failure."),
    ):
        function = option(function)
    return function


def speaks(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with `manners`, called with one `manner` that also heeds the options before the verb."""

    @manners
    @click.pass_context
    @functools.wraps(function)
    def command(
        context: click.Context,
        /,
        *arguments: Any,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        debug: bool,
        **options: Any,
    ) -> Any:
        del debug  # read from the command line by failures.report, because a failure may come before parsing ends
        above = context.find_root().params
        manner = Manner(
            json=as_json or bool(above.get("as_json")),
            quiet=quiet or bool(above.get("quiet")),
            verbose=verbose or bool(above.get("verbose")),
        )
        if manner.quiet or not is_terminal(sys.stderr):
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the Hub's client is imported
        return function(*arguments, manner=manner, **options)

    return command


def words(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A list of names between commas, as a callback of an option."""
    if value is None:
        return None
    words = tuple(word.strip() for word in value.split(","))
    if not all(words):
        raise UsageError(f"{parameter.opts[0]} needs names", hint="for example --components unet,text_encoder")
    return words


architecture = click.option(
    "--arch", "--architecture", "arch", metavar="ID", help="The architecture, where the file does not tell."
)
unsafe_pickle = click.option(
    "--unsafe-pickle", is_flag=True, help="Read .pt, .bin and .ckpt files (by a restricted reader)."
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
plot = click.option(
    "--plot", type=click.Path(), metavar="FILE", help="Draw the numbers by block and layer: a .png or .html file."
)
replot = click.option("--overwrite", is_flag=True, help="Replace the plot if it is there.")
dry_run = click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
if_needed = click.option(
    "--if-needed", is_flag=True, help="Do nothing if OUT was made from this input, in this way, by this version."
)
threads = click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Modules worked on at once."
)
allow_nonfinite = click.option(
    "--allow-nonfinite", is_flag=True, help="Go on where values that are computed hold NaN or infinity."
)
allow_partial = click.option(
    "--allow-partial", is_flag=True, help="Leave out what is unknown or incomplete, and list it."
)
allow_lossy = click.option(
    "--allow-lossy", is_flag=True, help="Go on where OUT cannot hold it exactly; print the error."
)

# The runtimes of formats.runtimes, spelt out here so that --help need not import the tables.
RUNTIMES = ("diffusers", "peft", "comfyui", "a1111", "kohya", "vllm")


def runtime(text: str) -> Callable[[Function], Function]:
    """--for RUNTIME, with what it does for the command."""
    return click.option("--for", "runtime", type=click.Choice(RUNTIMES), metavar="RUNTIME", help=f"{text} {_NAMED}")


_NAMED = f"One of {', '.join(RUNTIMES)}."
