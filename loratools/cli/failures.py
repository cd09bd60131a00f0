"""Every way a command can end badly: one message, where it happened, what to do, and the exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, NoReturn

import click

from loratools.cli.render import write
from loratools.cli.text import visible
from loratools.errors import InternalError, LoratoolsError, ResourceError, UsageError, nearest
from loratools.tensors import reserve

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "done and verified"),
    (1, "the answer is no: the inputs differ, a validation fails or is inconclusive"),
    (2, "usage: unknown option or word, missing path, output exists or is an input"),
    (3, "input malformed, unsafe or unsupported; unknown or incomplete keys; not representable in the target"),
    (4, "inputs do not fit: wrong role, architecture or shapes"),
    (5, "memory, disk or permission; an input changed while it was read"),
    (6, "the Hub or the network; a needed file that is not on this machine"),
    (7, "NaN, infinity or overflow"),
    (70, "a bug of loratools"),
    (130, "interrupted (143: terminated)"),
)


class Interrupted(LoratoolsError):
    """Stopped from the keyboard; no half-written output stays behind."""

    code: ClassVar[str] = "interrupted"
    exit_code: ClassVar[int] = 130


class Terminated(Interrupted):
    """Stopped by SIGTERM or SIGHUP; no half-written output stays behind."""

    code: ClassVar[str] = "terminated"
    exit_code: ClassVar[int] = 143


STOPPED = (Interrupted.exit_code, Terminated.exit_code)
"""The exit codes of a command that somebody stopped."""


class _Stop(BaseException):
    """What the signal handler raises: no `except Exception` may swallow it, every `finally` cleans up behind it."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP unwind the stack as an exception, so that temporary files are removed."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}

    def stop(number: int, _frame: object) -> None:
        for other in former:
            signal.signal(other, signal.SIG_IGN)
        raise _Stop(number)

    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_quietly() -> None:
    """From here on Ctrl-C ends the process at once: nothing is left that could be undone, and in an interpreter that
    goes down every cleanup of a library would print a traceback of its own.
    """
    with suppress(KeyboardInterrupt):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave_at_once(code: int) -> NoReturn:
    """End the process without waiting for threads: after an interrupt some may compute on, and nobody takes it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a reader that has gone, a full disk: there is nobody left to tell
            stream.flush()
    os._exit(code)


def asked_for(option: str, arguments: Sequence[str]) -> bool:
    """Whether `option` stands among the arguments: a failure may come before, or while, they are parsed."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return option in arguments[:end]


def as_our_error(error: BaseException) -> LoratoolsError:
    """The error of ours that `error` means to a user."""
    if isinstance(error, LoratoolsError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Interrupted("interrupted", hint="nothing half-written was left behind")
    if isinstance(error, _Stop):
        return Terminated("terminated", hint="nothing half-written was left behind")
    if _is_want_of_memory(error):
        return ResourceError("out of memory", hint="free some, or take fewer --threads")
    if isinstance(error, OSError):
        return ResourceError(error.strerror or str(error), path=error.filename)
    return InternalError(
        f"{type(error).__name__}: {error}",
        hint="this is a bug of loratools: please report it with the command and what it prints with --debug",
    )


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "can't start new thread")
"""How torch (on a CPU here, on Windows, on a GPU), the libraries below it and Python's threads put it."""


def _is_want_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or the system had no memory left: for values, or for a thread's stack."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _NO_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _usage(error: click.ClickException) -> UsageError:
    said = error.format_message().rstrip(".")
    hint, message = None, said[:1].lower() + said[1:]
    if isinstance(error, click.NoSuchOption):
        parameters = error.ctx.command.params if error.ctx else []
        known = [name for item in parameters if not getattr(item, "hidden", False) for name in item.opts]
        long = [name for name in known if name.startswith("--")] if error.option_name.startswith("--") else []
        hint, message = nearest(error.option_name, long), f"there is no option {error.option_name!r}"
    context = error.ctx if isinstance(error, click.UsageError) else None
    if hint is None and context is not None:
        hint = f"see {context.command_path} --help"
    return UsageError(message, hint=hint)


def tell_no_want_of_memory() -> None:
    """Let Python be silent about memory that it lacks where nobody can be asked: the command ends for it, in words."""

    def ended(args: threading.ExceptHookArgs) -> None:
        reserve.let_go()
        if not issubclass(args.exc_type, MemoryError):
            threading.__excepthook__(args)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        reserve.let_go()
        if not issubclass(args.exc_type, MemoryError):
            sys.__unraisablehook__(args)

    threading.excepthook, sys.unraisablehook = ended, unraisable
    reserve.keep()


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Print what went wrong, as text on stderr or as the error document on stdout, and return the exit code."""
    reserve.let_go()
    debug = asked_for("--debug", arguments)
    if _is_want_of_memory(error) and not debug:
        error = error.with_traceback(None)  # its frames hold what took the memory, and words take some, too
    try:
        return _reported(error, arguments, debug=debug)
    except MemoryError:
        os.write(2, b"error: out of memory\n")
        return ResourceError.exit_code


def _reported(error: BaseException, arguments: Sequence[str], *, debug: bool) -> int:
    ours = as_our_error(error)
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if asked_for("--json", arguments):
        print_document(ours)
    else:
        print_message(ours)
    return ours.exit_code


def print_document(error: LoratoolsError) -> None:
    """The error as JSON on stdout."""
    write(json.dumps(error.to_dict(), default=str) + "\n")


def print_message(error: LoratoolsError) -> None:
    """The error as text on stderr: what, where, what to do."""
    lines = [f"error: {error.message}"]
    lines += [f"  file: {error.path}"] if error.path else []
    lines += [f"  key:  {error.key}"] if error.key else []
    lines += [f"  hint: {error.hint}"] if error.hint else []
    if sys.stderr is not None:
        sys.stderr.write("".join(f"{visible_lines(line)}\n" for line in lines))
        sys.stderr.flush()


def visible_lines(text: str) -> str:
    """`text` escaped line by line: our own line breaks stay, indented."""
    return "\n        ".join(visible(line) for line in text.split("\n"))
