"""How far a long job is: one living line with rate and time left on a terminal, a line every 10 % in a pipe."""

from __future__ import annotations

import sys
import time
from typing import Self

from loratools.cli.text import human_bytes, is_terminal

QUIET_SECONDS = 1.0
REDRAW_SECONDS = 0.1


class Progress:
    """A progress callback: call it with the bytes done and the bytes in all; leave the block to end the line.

    Nothing is shown in the first second, so short jobs stay silent. `done` says what has been done to all bytes then,
    and `then` what comes after it.
    """

    def __init__(self, label: str, *, quiet: bool = False, done: str = "written", then: str = "now proving") -> None:
        self.label = label
        self.done, self.then = done, then
        self.stream = None if quiet else sys.stderr
        self.terminal = is_terminal(self.stream)
        self.started = self.drawn = time.monotonic()
        self.tenths = 0
        self.width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.width and self.stream is not None:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()

    def __call__(self, done: int, total: int) -> None:
        """Show `done` of `total` bytes, if it is time to."""
        now = time.monotonic()
        if self.stream is None or total <= 0 or now - self.started < QUIET_SECONDS:
            return
        rate = done / (now - self.started)
        left = (total - done) / rate if rate else 0.0
        line = (
            f"{self.label}: {100 * done // total} %, {human_bytes(done)} of {human_bytes(total)}, "
            f"{human_bytes(int(rate))}/s, {_duration(left)} left"
        )
        if done >= total:
            line = f"{self.label}: {human_bytes(total)} {self.done}, {human_bytes(int(rate))}/s; {self.then}"
        if self.terminal and (done >= total or now - self.drawn >= REDRAW_SECONDS):
            import shutil

            line = line[: max(1, shutil.get_terminal_size().columns - 1)]  # a folded line could not be wiped
            self.stream.write("\r" + line.ljust(self.width))
            self.width, self.drawn = len(line), now
        elif not self.terminal and 10 * done // total > self.tenths:
            self.stream.write(line + "\n")
            self.tenths = 10 * done // total
        self.stream.flush()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    return f"{minutes} min {seconds_left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
