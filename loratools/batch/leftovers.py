"""What killed processes leave behind of the outputs that they were writing."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from loratools.tensors.output import abandoned


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
