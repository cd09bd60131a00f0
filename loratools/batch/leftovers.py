"""What killed processes leave behind of the outputs that they were writing."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from loratools.tensors.output import TEMPORARY_SUFFIX, abandoned


def sweep(outputs: Iterable[str | None]) -> None:
    """Remove the unfinished temporaries of these outputs whose processes are gone: names tell whose they are."""
    folders: dict[Path, set[str]] = defaultdict(set)
    for output in outputs:
        if output is not None:
            folders[Path(output).parent].add(Path(output).name)
    for folder, names in folders.items():
        for left in abandoned(folder, names):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def sweep_all(outputs: Callable[[], Iterable[str]]) -> None:
    """The same for all outputs of a batch, of which only those beside a temporary are held in memory.

    Runs before this one may have been killed, so what they left may be of items that are done by now.
    """
    folders = {Path(output).parent for output in outputs()}
    littered = {folder for folder in folders if any(folder.glob(f".*{TEMPORARY_SUFFIX}"))}
    if littered:
        sweep(output for output in outputs() if Path(output).parent in littered)
