"""The `loratools` command: a group whose verbs are imported when they are used."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import click

from loratools.cli.failures import (
    EXIT_CODES,
    STOPPED,
    end_quietly,
    leave_at_once,
    report,
    stoppable,
    tell_no_want_of_memory,
)
from loratools.cli.options import manners
from loratools.cli.render import reader_has_gone
from loratools.errors import UsageError, nearest

COMPLETION_VARIABLE = "_LORATOOLS_COMPLETE"


class Verb(NamedTuple):
    """One command: its name (also the module in loratools.cli) and what the overview says about it."""

    name: str
    summary: str


VERBS: tuple[Verb, ...] = (
    Verb("architectures", "Every architecture that is known."),
    Verb("batch", "A verb over very many files, resumable."),
    Verb("combine", "Combine several adapters into one, and prove it."),
    Verb("compare", "Do two adapters make the same change?"),
    Verb("convert", "Write an adapter in another format, and prove it."),
    Verb("demo", "The whole story on files made on the spot."),
    Verb("extract", "An adapter from a fine-tune, by singular value decomposition."),
    Verb("formats", "Every format that is read, and every one that is written."),
    Verb("hash", "The names that a file is known by, and a fingerprint of what it holds."),
    Verb("inspect", "What is in a file?"),
    Verb("merge", "Add adapters to the weights of a base model."),
    Verb("metadata", "Read and change what a file says about itself."),
    Verb("pull", "Fetch a file, an adapter or a pipeline from the Hub."),
    Verb("push", "Put an adapter on the Hub, with a model card."),
    Verb("rebuild", "A complete pipeline with adapters merged in, loaded and run once."),
    Verb("recipe", "How an output was made, and the same output once more."),
    Verb("resize", "Change the rank of an adapter, and measure what it cost."),
    Verb("validate", "Do all ways of an adapter into a pipeline give the same pictures?"),
)

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES)


class Verbs(click.Group):
    """The group: its overview comes from the table, a verb's module is imported when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """The verbs by name."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's signature)
        """The command of that name, from its module."""
        if cmd_name not in {verb.name for verb in VERBS}:
            return None
        command = importlib.import_module(f"loratools.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's signature)
        """The overview, without importing a verb."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb.name, verb.summary) for verb in VERBS])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named first; an unknown one is refused with the nearest known."""
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            hint = nearest(args[0], known) or f"the commands are {', '.join(known)}"
            raise UsageError(f"there is no command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]  # always ends the process, as click's does in its standalone mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line and end with its exit code: the only place where exceptions become words."""
        if args is None:  # the process is this command's alone
            gc.set_threshold(200_000, 50, 50)  # a header makes thousands of small lasting objects, hardly any cycles
            tell_no_want_of_memory()
        arguments = list(sys.argv[1:] if args is None else args)
        name = prog_name or "loratools"
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a name never fails a command for want of a glyph
        instruction = os.environ.get(COMPLETION_VARIABLE)
        if instruction:
            from click.shell_completion import shell_complete

            sys.exit(shell_complete(self, {}, name, COMPLETION_VARIABLE, instruction))
        try:
            with stoppable(), self.make_context(name, list(arguments), **extra) as context:
                self.invoke(context)
            code = 0
        except click.exceptions.Exit as end:
            code = end.exit_code
        except BrokenPipeError as error:
            code = 0 if reader_has_gone() else report(error, arguments)
        except BaseException as error:  # noqa: BLE001 (each becomes a message and an exit code, none is lost)
            code = report(error, arguments)
        if args is None:
            end_quietly()
            if code in STOPPED:
                leave_at_once(code)
            gc.freeze()  # all there is goes with it: looking through it for cycles takes longer than many a verb
        sys.exit(code)


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 (click's signature)
    if value and not context.resilient_parsing:
        from loratools import __version__

        click.echo(f"loratools {__version__}")
        context.exit()


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@manners
@click.pass_context
def cli(context: click.Context, /, *, as_json: bool, **_manners: bool) -> None:
    """Inspect, convert, merge, extract, resize, combine and compare LoRA weights, and prove what was done."""
    if context.invoked_subcommand is None:
        if as_json:
            raise UsageError("no command was given", hint="see loratools --help")
        click.echo(context.get_help(), err=True)
        context.exit(2)


main = cli.main
