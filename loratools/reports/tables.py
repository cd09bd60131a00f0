"""The tables of the page: routes, modules, noise floors, controls and laws; each row is readable as a card."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from loratools.reports.bars import Axis, axes, cell
from loratools.reports.evidence import BASE, REFERENCE, Control, Figure, Law, ModuleRow, Noise, Route
from loratools.reports.markup import Child, Markup, element, joined
from loratools.reports.text import MARKS, WORDS, number

MODULES_SHOWN = 5  # of each route


def status(word: str) -> Markup:
    """A status as a mark and a word: never as a colour alone."""
    return element("span", f"{MARKS[word]} {WORDS[word]}", class_=f"status {word}")


def table(
    caption: Child, headings: Sequence[str], rows: Iterable[Sequence[Child]], under: Sequence[Child] | None = None
) -> Markup:
    """A table whose first column names the row; on a narrow screen each row is a card. `under` stands below each row,
    as wide as the table, where it is not None.
    """
    body: list[Markup] = []
    for index, row in enumerate(rows):
        note = under[index] if under is not None else None
        cells = (
            element("td", child, data_label=heading, class_="name" if at == 0 else None)
            for at, (heading, child) in enumerate(zip(headings, row, strict=True))
        )
        body.append(element("tr", *cells, class_="noted" if note is not None else None))
        if note is not None:
            cell = element("td", note, colspan=len(headings), data_label="remarks")
            body.append(element("tr", cell, class_="note-row"))
    return element(
        "div",
        element(
            "table",
            element("caption", caption) if caption is not None else None,
            element("thead", element("tr", *(element("th", heading, scope="col") for heading in headings))),
            element("tbody", *body),
        ),
        class_="scroll",
    )


def names(groups: Iterable[Sequence[Figure]]) -> list[str]:
    """The names of all figures: those with limits first, and else in the order in which they first stand."""
    figures = [figure for group in groups for figure in group]
    limited = [figure.name for figure in figures if figure.limit is not None]
    return list(dict.fromkeys(limited + [figure.name for figure in figures]))


def _columns(
    columns: Sequence[str], figures: Sequence[Figure], scales: Mapping[str, Axis], *, right: bool | None = None
) -> list[Child]:
    """The cells of one row, one for each column; a column that the row lacks stays empty."""
    found = {figure.name: figure for figure in figures}
    return [cell(found[name], scales.get(name), right=right) if name in found else None for name in columns]


def routes(rows: Sequence[Route]) -> Markup:
    """What every way of using the adapter gave, beside its limits and the noise floor."""
    columns = names(row.figures for row in rows)
    scales = axes(figure for row in rows for figure in row.figures)
    timed = any(row.seconds is not None for row in rows)
    heavy = any(row.peak_bytes is not None for row in rows)
    headings = ["route", "status", *columns, *(["time"] if timed else []), *(["peak memory"] if heavy else [])]
    cells: list[list[Child]] = []
    for row in rows:
        line: list[Child] = [
            joined(
                (
                    row.name,
                    element("div", row.explains, class_="explains") if row.explains else None,
                    _undecided(row),
                )
            ),
            _status_of(row),
            *_columns(columns, row.figures, scales),
        ]
        if timed:
            line.append(None if row.seconds is None else element("span", number(row.seconds, "s"), class_="figure"))
        if heavy:
            line.append(
                None if row.peak_bytes is None else element("span", number(row.peak_bytes / 1e6, "MB"), class_="figure")
            )
        cells.append(line)
    notes = [_notes_of(row) for row in rows]
    return table(None, headings, cells, notes)


def _status_of(row: Route) -> Markup | None:
    """A route's status; the base and the reference are held to nothing."""
    return None if row.name in {BASE, REFERENCE} else status(row.status)


def _notes_of(row: Route) -> Markup | None:
    """The remarks about a route and its modules, or None."""
    return joined((remarks(row.remarks), _modules_of(row))) if row.remarks or row.modules else None


def _undecided(row: Route) -> Markup | None:
    """That a route does not decide the verdict, where one might think so."""
    if row.decides or row.name in {BASE, REFERENCE}:
        return None
    return element("div", "does not decide the verdict", class_="explains")


def _modules_of(row: Route) -> Markup | None:
    """The modules that a route got wrong, behind a click."""
    if not row.modules:
        return None
    count = len(row.modules)
    shown = row.modules[:200]
    more = [element("li", f"and {count - len(shown):,} more, in report.json")] if count > len(shown) else []
    return element(
        "details",
        element("summary", f"{count:,} module{'s' if count != 1 else ''}"),
        element("ul", *(element("li", name, class_="mono") for name in shown), *more),
        class_="more",
    )


def remarks(lines: Sequence[str]) -> Markup | None:
    """Sentences as a list, or nothing."""
    return element("ul", *(element("li", line) for line in lines), class_="remarks") if lines else None


def modules(rows: Sequence[ModuleRow]) -> Markup:
    """The modules furthest from the reference, worst first: the worst of every route, so that none hides another."""
    ordered = sorted(rows, key=lambda row: -math.inf if math.isnan(row.error) else -row.error)
    counts: Counter[str] = Counter()
    worst: list[ModuleRow] = []
    for row in ordered:
        counts[row.route] += 1
        if counts[row.route] <= MODULES_SHOWN:
            worst.append(row)
    some = f"the worst {MODULES_SHOWN} of each route, of {len(rows):,} in all"
    of = some if len(rows) > len(worst) else f"all {len(rows)}, worst first"
    figures = [Figure("relative error", row.error, limit=row.limit) for row in worst]
    scales = axes(figures)
    headings = ["module", "component", "route", "relative error", "norm of the change", "ratio"]
    return table(
        of,
        headings,
        [
            (
                element("span", row.path, class_="mono"),
                row.component,
                row.route,
                cell(figure, scales.get("relative error")),
                number(row.norm),
                None if row.ratio is None else number(round(row.ratio, 4)),
            )
            for row, figure in zip(worst, figures, strict=True)
        ],
    )


def noise(rows: Sequence[Noise]) -> Markup:
    """What lies apart although nothing differs."""
    columns = names(row.figures for row in rows)
    return table(
        None,
        ["measured", *columns],
        [[_named(row.name, row.explains), *_columns(columns, row.figures, {})] for row in rows],
    )


def controls(rows: Sequence[Control]) -> Markup:
    """Deliberate mistakes, and whether they were caught."""
    columns = names(row.figures for row in rows)
    scales = axes(figure for row in rows for figure in row.figures)
    seen = any(row.visible_in for row in rows)
    headings = ["mistake", "caught", *columns, *(["seen in"] if seen else [])]
    return table(
        None,
        headings,
        [
            [
                _named(row.name, row.explains),
                status("caught" if row.caught else "missed"),
                *_columns(columns, row.figures, scales, right=row.caught),
                *([", ".join(row.visible_in) or "nothing"] if seen else []),
            ]
            for row in rows
        ],
    )


def laws(rows: Sequence[Law]) -> Markup:
    """Promises about scales, and whether they hold."""
    columns = names(row.figures for row in rows)
    scales = axes(figure for row in rows for figure in row.figures)
    return table(
        None,
        ["promise", "status", *columns],
        [[_named(row.name, row.explains), status(row.status), *_columns(columns, row.figures, scales)] for row in rows],
    )


def _named(name: str, explains: str) -> Markup:
    return joined((name, element("div", explains, class_="explains") if explains else None))
