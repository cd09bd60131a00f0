"""What must hold after every abuse: inputs untouched, old output or a whole new one, nothing left, a clean message."""

import contextlib
import hashlib
import io
import stat
import time
import unicodedata
from dataclasses import dataclass

from loratools.cli.failures import EXIT_CODES
from loratools.cli.main import main
from loratools.tensors.output import TEMPORARY_SUFFIX

CODES = {code for code, _ in EXIT_CODES} | {143}
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, what it printed, and the seconds of CPU that it took."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self):
        return self.out + self.err


def command(*arguments):
    """The command line, run within this process."""
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue(), time.process_time() - started)


def contents(folder):
    """Every name below `folder` with what stands there: a hash, a link's target, or the kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"-> {path.readlink()}"
        elif stat.S_ISREG(mode):
            size = path.stat().st_size
            # A terabyte of nothing is known by its beginning.
            with path.open("rb") as file:
                what = f"{size} {hashlib.sha256(file.read(min(size, 8 << 20))).hexdigest()}"
        else:
            what = f"kind {stat.S_IFMT(mode):o}"
        found[str(path.relative_to(folder))] = what
    return found


def leftovers(folder):
    """The temporaries of ours below a folder."""
    return [path.name for path in folder.rglob("*") if TEMPORARY_SUFFIX in path.name]


def check_printable(text):
    """Nothing that steers a terminal, or hides, but the line break."""
    bad = {character for character in text if character != "\n" and unicodedata.category(character) in HIDDEN}
    assert not bad, bad


def check_ended_well(done):
    """A documented code, no traceback, no bug of ours, and text that a terminal can take."""
    assert done.code in CODES, done
    assert done.code != 70, done.err
    assert "Traceback" not in done.text, done.text
    check_printable(done.text)
    if done.code in (0, 1):
        assert done.out
    else:
        assert done.err.startswith("error: "), done
