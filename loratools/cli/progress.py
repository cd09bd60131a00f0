"""How far a long job is: one living line with rate and time left on a terminal, a line every 10 % in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self

from loratools.cli.text import human_bytes, is_terminal

QUIET_SECONDS = 1.0
REDRAW_SECONDS = 0.1


class Line:
    """One living line on a terminal, wiped when the block is left; a line every tenth in a pipe.

    Nothing is shown in the first second, so short jobs stay silent.
    """

    def __init__(self, *, quiet: bool = False) -> None:
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

    def show(self, done: int, total: int, told: Callable[[float], str]) -> None:
        """Show what is told of the seconds so far, if it is time to."""
        now = time.monotonic()
        if self.stream is None or total <= 0 or now - self.started < QUIET_SECONDS:
            return
        if self.terminal and (done >= total or now - self.drawn >= REDRAW_SECONDS):
            import shutil

            line = told(now - self.started)
            line = line[: max(1, shutil.get_terminal_size().columns - 1)]  # a folded line could not be wiped
            self.stream.write("\r" + line.ljust(self.width))
            self.width, self.drawn = len(line), now
        elif not self.terminal and 10 * done // total > self.tenths:
            self.stream.write(told(now - self.started) + "\n")
            self.tenths = 10 * done // total
        self.stream.flush()


class Progress(Line):
    """A progress callback: call it with the bytes done and the bytes in all; leave the block to end the line.

    `done` says what has been done to all bytes then, and `then` what comes after it.
    """

    def __init__(self, label: str, *, quiet: bool = False, done: str = "written", then: str = "now proving") -> None:
        super().__init__(quiet=quiet)
        self.label = label
        self.done, self.then = done, then

    def __call__(self, done: int, total: int) -> None:
        """Show `done` of `total` bytes, if it is time to."""
        self.show(done, total, lambda seconds: self._told(done, total, seconds))

    def _told(self, done: int, total: int, seconds: float) -> str:
        rate = done / seconds
        if done >= total:
            return f"{self.label}: {human_bytes(total)} {self.done}, {human_bytes(int(rate))}/s; {self.then}"
        return (
            f"{self.label}: {100 * done // total} %, {human_bytes(done)} of {human_bytes(total)}, "
            f"{human_bytes(int(rate))}/s, {human_duration((total - done) / rate if rate else 0.0)} left"
        )


def human_duration(seconds: float) -> str:
    """`75` → `1 min 15 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    return f"{minutes} min {seconds_left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
