"""`loratools batch`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from loratools.cli.options import Manner, speaks
from loratools.cli.progress import Line, human_duration
from loratools.cli.render import Document, Page, emit
from loratools.errors import UsageError

MEGABYTE = 1_000_000


@click.command("batch", context_settings={"ignore_unknown_options": True})
@click.argument("verb")
@click.argument("manifest")
@click.argument("words", metavar="[OPTIONS OF VERB]...", nargs=-1, type=click.UNPROCESSED)
@click.option("-o", "--output", metavar="PATTERN", help="Where each item goes: 'out/{stem}.safetensors'.")
@click.option("--set", "constants", metavar="COLUMN=VALUE", multiple=True, help="Fill a column that rows lack.")
@click.option(
    "--state", type=click.Path(), metavar="FILE", help="Keeps what is done; here MANIFEST.VERB.sqlite if not said."
)
@click.option("--results", type=click.Path(), metavar="FILE", help="A row for each item: .jsonl or .parquet.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes; one a core if not said.")
@click.option(
    "--engine",
    type=click.Choice(("processes", "ray")),
    default="processes",
    show_default=True,
    help="Where items run: in processes of this machine, or on a Ray cluster.",
)
@click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster; without it one is started here.")
@click.option("--shard", metavar="I/N", help="Every N-th item, from the I-th on: one of N machines' part.")
@click.option("--deduplicate", is_flag=True, help="Hash adapters first; do those that are the same once, and copy.")
@click.option("--retry", is_flag=True, help="Try what failed once more.")
@click.option("--time-limit", type=click.FloatRange(0.1), metavar="SECONDS", help="For one item.")
@click.option("--memory-limit", type=click.IntRange(64), metavar="MB", help="For one item.")
@click.option("--size-limit", type=click.IntRange(0), metavar="MB", help="Larger files are refused.")
@speaks
def command(verb: str, manifest: str, words: tuple[str, ...], manner: Manner, **how: Any) -> None:
    """A verb over very many files, resumable.

    VERB is convert, extract, hash, inspect, merge, resize or validate; its own options follow MANIFEST, and hold for
    every item. MANIFEST is a .csv or .jsonl file whose columns are VERB's arguments (input; base and tuned; base and
    lora; pipeline and lora; --OPTION for one row), a .txt file of paths, a folder, a quoted pattern, or hf://owner/name
    or hf://owner for the adapters there. Each item ends as the command alone would, with its document or its error;
    none stops the others. Whatever stops the run, the same command goes on where it was. Exit code 1: items failed.

    --deduplicate is for convert, merge and resize. Items whose files, options and base are the same are done once; the
    output of another has the bytes that the command alone would have written: it is a hard link to the first one's, or,
    as records name their input files, the same tensors under its own record (of merges and GGUF files only where the
    names are equal). An adapter that is the same by its fingerprint, but in another spelling or with other metadata,
    would become another file: it is done by itself, and its row names the first (same_as).
    """
    from loratools.batch.batch import Batch
    from loratools.batch.worker import Limits

    _check_words(verb, words)
    limits = Limits(how["time_limit"], _bytes(how["memory_limit"]), _bytes(how["size_limit"]))
    quiet = manner.quiet
    with (
        _Hashed(verb, quiet=quiet) as identified,
        _Progress(verb, quiet=quiet) as progress,
        contextlib.redirect_stdout(sys.stderr),  # Ray tells there of workers that died
    ):
        done = Batch(
            verb=verb,
            manifest=manifest,
            options=words,
            output=how["output"],
            constants=_constants(how["constants"]),
            state=how["state"] or f"{Path(manifest).name.replace('*', '_') or 'batch'}.{verb}.sqlite",
            results=how["results"],
            workers=how["workers"] or 0,
            limits=limits,
            shard=_shard(how["shard"]),
            retry=how["retry"],
            engine=how["engine"],
            ray_address=how["ray_address"],
            progress=progress,
            deduplicate=how["deduplicate"],
            identified=identified,
        ).run()
    emit(done.to_dict(), manner, view)
    if done.failed:
        click.get_current_context().exit(1)


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * MEGABYTE


def _check_words(name: str, words: tuple[str, ...]) -> None:
    """Refuse, once for all items, options that the verb does not have."""
    from loratools.batch.verbs import batch_verb
    from loratools.cli.main import cli

    verb = batch_verb(name)
    command = cli.get_command(click.get_current_context(), name)
    assert command is not None
    inputs = [*verb.columns, *{"positional": ["out"], "option": ["-o", "out"]}.get(verb.output, [])]
    above = click.get_current_context().find_root()
    command.make_context(name, [*inputs, *words], parent=above)  # without a parent it would forget that -h is help


def _constants(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word} has no =", hint="for example --set base=model.safetensors")
        found[name] = value
    return found


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard {text} is no part", hint="--shard 1/4 is the first of four")
    return int(index), int(count)


class _Hashed(Line):
    """Items whose adapters are hashed, with rate and time left."""

    def __init__(self, verb: str, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.verb = verb

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` items are hashed."""
        self.show(
            done,
            total,
            lambda seconds: (
                f"batch {self.verb}: {done:,} of {total:,} hashed, {done / seconds:,.1f}/s, "
                f"{human_duration((total - done) * seconds / done)} left"
            ),
        )


class _Progress(Line):
    """Items done, with rate, failures and time left."""

    def __init__(self, verb: str, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.verb = verb
        self.before: int | None = None

    def __call__(self, done: int, total: int, failed: int) -> None:
        """`done` of `total` items have ended, `failed` of them badly; what ended in earlier runs makes no rate."""
        self.before = done - 1 if self.before is None else self.before
        worked = done - self.before
        self.show(
            done,
            total,
            lambda seconds: (
                f"batch {self.verb}: {done:,} of {total:,}, {failed:,} failed, {worked / seconds:,.1f}/s, "
                f"{human_duration((total - done) * seconds / worked)} left"
            ),
        )


def view(page: Page, document: Document, manner: Manner) -> None:  # noqa: ARG001 (every view takes it)
    """The counts, what failed by its code, and where the rest is told."""
    page.line(f"{document['verb']}: {document['done']:,} of {document['items']:,} done", strong=True)
    rate = document["worked"] / document["seconds"] if document["seconds"] else 0
    page.facts(
        [
            ("failed", f"{document['failed']:,}"),
            ("worked on in this run", f"{document['worked']:,} ({document['seconds']:.1f} s, {rate:,.1f} a second)"),
            ("copied", f"{document['copied']:,}" if document["copied"] else None),
            ("state", document["state"]),
            ("results", document["results"]),
        ]
    )
    page.table(("error", ">items"), [(code, f"{count:,}") for code, count in document["codes"].items()])
