"""How many bytes of a job are done, told from whichever thread has done some."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from loratools.tensors.writer import Progress


@dataclass(slots=True)
class Tally:
    """Bytes done of `total`; every addition is told to `progress`, if there is one."""

    progress: Progress | None
    total: int
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    def add(self, count: int) -> None:
        """Tell the progress."""
        with self.lock:
            self.done += count
            if self.progress is not None:
                self.progress(self.done, self.total)
