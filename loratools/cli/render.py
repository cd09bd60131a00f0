"""A result on stdout: its document as JSON, or a page of text that is a view of the same document."""

from __future__ import annotations

import io
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loratools.cli.options import Manner
from loratools.cli.text import takes_colour, visible

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]
UNLIMITED = 1_000_000


@dataclass(slots=True)
class Page:
    """Blocks of text in order; every word is data, none is markup."""

    blocks: list[tuple[str, Any]] = field(default_factory=list)

    def line(self, text: str, *, strong: bool = False) -> None:
        """One line."""
        self.blocks.append(("strong" if strong else "line", text))

    def facts(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values, aligned; pairs whose value is None or empty are left out."""
        rows = [(name, str(value)) for name, value in pairs if value not in (None, "", [], {}, ())]
        self.blocks.append(("facts", rows))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns under headings; headings that start with `>` are set to the right."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        if cells:
            self.blocks.append(("table", (tuple(headings), cells)))

    def notes(self, heading: str, lines: Iterable[str], *, most: int | None = None) -> None:
        """Sentences under a heading, each with a dash, the first `most` of them; nothing if there are none."""
        found = list(lines)
        if found:
            self.blocks.append(("strong", heading))
            self.blocks.extend(("line", f"  - {text}") for text in found[:most])
        if most is not None and len(found) > most:
            self.blocks.append(("line", f"  - and {len(found) - most:,} more (all with -v or --json)"))


def emit(document: Document, manner: Manner, view: Callable[[Page, Document, Manner], None]) -> None:
    """Print `document`: itself with --json, else what `view` makes of it."""
    if manner.json:
        write(json.dumps(document, allow_nan=False) + "\n")
    else:
        page = Page()
        view(page, document, manner)
        write(typeset(page, styled=takes_colour(sys.stdout)))


def typeset(page: Page, *, styled: bool) -> str:
    """The page as text, with ANSI styles if `styled`; folded to the terminal, where stdout is one."""
    watched = sys.stdout is not None and sys.stdout.isatty()
    if not styled and not watched:
        return _plain(page)  # Rich takes longer to import than most pages to make
    import shutil

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=styled,
        color_system="standard" if styled else None,
        force_jupyter=False,
        width=shutil.get_terminal_size().columns if watched else UNLIMITED,
        legacy_windows=False,
    )
    for kind, content in page.blocks:
        if kind in {"line", "strong"}:
            console.print(Text(visible(content), style="bold" if kind == "strong" else ""), soft_wrap=kind == "strong")
            continue
        if kind == "table" and _least_width(*content) > console.width:
            _stack(console, *content)
            continue
        headings, rows = content if kind == "table" else (("", ""), content)
        grid = Table(box=None, show_header=kind == "table", pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, heading in enumerate(headings):
            grid.add_column(
                Text(heading.removeprefix(">")),
                justify="right" if heading.startswith(">") else "left",
                style="cyan" if kind == "facts" and index == 0 else "",
                overflow="fold",
            )
        for row in rows:
            grid.add_row(*(Text(visible(cell)) for cell in row))
        console.print(grid)
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def _plain(page: Page) -> str:
    """The page for a pipe or a file: columns are aligned, and one row is one line, whatever the names' lengths."""
    lines: list[str] = []
    for kind, content in page.blocks:
        if kind in {"line", "strong"}:
            lines.append(visible(content))
            continue
        headings, rows = content if kind == "table" else (("", ""), content)
        cells = [[visible(cell) for cell in row] for row in rows]
        if kind == "table":
            cells.insert(0, [heading.removeprefix(">") for heading in headings])
        widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            spaces = [" " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True)]
            pairs = zip(headings, row, spaces, strict=True)
            lines.append("  ".join(gap + cell if name.startswith(">") else cell + gap for name, cell, gap in pairs))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _least_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The columns of a terminal that a table needs so that no word is cut."""
    cells = [[heading.removeprefix(">") for heading in headings], *rows]
    widest = [max(len(word) for row in cells for word in (row[at].split() or [""])) for at in range(len(headings))]
    return sum(widest) + 2 * (len(headings) - 1)


def _stack(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a narrow terminal: one row under another, each cell under its heading."""
    from rich.text import Text

    for row in rows:
        for at, (heading, cell) in enumerate(zip(headings, row, strict=True)):
            if cell:
                name = "" if at == 0 else f"  {heading.removeprefix('>')}: "
                console.print(Text(name + visible(cell), style="bold" if at == 0 else "", overflow="fold"))


def write(text: str) -> None:
    """Put `text` on stdout at once; a reader that has gone away changes nothing about the answer."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence()


def reader_has_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more; if so, stdout is silenced."""
    if sys.stdout is None:
        return False
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:
        silence()
    return gone


def silence() -> None:
    """Send stdout nowhere: the interpreter's own flush at exit must not complain about what nobody reads."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (lives as long as the process)


def counted(counts: Mapping[str, int]) -> str:
    """`986 × 16, 2 × 32`, the most frequent first; a lone value without its count."""
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{value} ({count:,})" for value, count in ordered[:6])
    return shown + (f", and {len(ordered) - 6} more" if len(ordered) > 6 else "")
