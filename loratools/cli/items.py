"""One item of a batch: a command line, run within a worker, and the document that it prints."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

import click

from loratools.cli.failures import STOPPED, as_our_error, leave_at_once, stoppable
from loratools.cli.main import cli
from loratools.errors import InternalError


def run(words: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON document of `loratools WORDS`; a signal undoes what is half done and ends all."""
    printed, code = io.StringIO(), 0
    try:
        with (
            stoppable(),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(io.StringIO()),
            cli.make_context("loratools", ["--json", "--quiet", *words]) as context,
        ):
            cli.invoke(context)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except BaseException as error:  # noqa: BLE001 (each is the item's answer, none is lost)
        ours = as_our_error(error)
        if ours.exit_code in STOPPED:
            leave_at_once(ours.exit_code)
        return ours.exit_code, ours.to_dict()
    document = json.loads(printed.getvalue())
    if not isinstance(document, dict):
        raise InternalError(f"{words[0]} printed no document")
    return code, document
