"""The contact sheet: for every scene the base, every route and its amplified difference, with figures, as one PNG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratools.reports.evidence import BASE, REFERENCE, Evidence, Panel, Scene
from loratools.reports.lettering import folded, font_for
from loratools.reports.pictures import amplified, difference, factor_of, png, pooled, require_pixels, resized
from loratools.reports.text import WORDS, shown, spoken

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from loratools.reports.evidence import Pixels

SCENES_SHOWN = 12
WIDEST = 1800  # pixels of the sheet
SMALLEST, LARGEST = 224, 320  # the longer side of a picture on the sheet
GAP = 20
PAD = 6
PAPER, INK, FAINT, BOX = "#ffffff", "#16181d", "#5b6270", "#eceef2"
INKS = {"pass": "#116329", "fail": "#b3151b", "inconclusive": "#8a5300", "refused": "#8a5300", "differs": "#8a5300"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text on the sheet."""

    text: str
    size: int = 15
    ink: str = INK


@dataclass(frozen=True, slots=True)
class Cell:
    """One panel laid out: heading, the picture, the difference, and lines under each."""

    heading: list[Line]
    picture: Pixels | None
    instead: list[Line]
    difference: Pixels | None
    under: list[Line]


def contact_sheet(evidence: Evidence, *, most: int = SCENES_SHOWN) -> bytes:
    """The sheet as PNG bytes, the same for the same evidence; scenes past `most` are counted in its last line."""
    from PIL import Image, ImageDraw

    scenes = evidence.scenes[:most]
    side = max(
        (max(panel.pixels.shape[:2]) for scene in scenes for panel in scene.panels if panel.pixels is not None),
        default=SMALLEST,
    )
    box = _shown_side(side)
    panels = max((len(scene.panels) for scene in scenes), default=1)
    columns = max(1, min(panels, (WIDEST - GAP) // (box + GAP)))
    width = max(GAP + columns * (box + GAP), 3 * (SMALLEST + GAP) + GAP)
    blocks: list[tuple[list[Line], list[Cell]]] = [(_title(evidence, width - 2 * GAP), [])]
    for at, scene in enumerate(scenes, start=1):
        heading = _wrapped(f"Scene {at} · seed {scene.seed}", 17, INK, width - 2 * GAP)
        heading += _wrapped(scene.prompt or "(empty prompt)", 15, FAINT, width - 2 * GAP, most=6)
        blocks.append((heading, [_cell(panel, scene, box) for panel in scene.panels]))
    if len(evidence.scenes) > len(scenes):
        rest = len(evidence.scenes) - len(scenes)
        blocks.append((_wrapped(f"and {rest} more scenes, in index.html", 15, FAINT, width - 2 * GAP), []))
    rows = [[cells[at : at + columns] for at in range(0, len(cells), columns)] for _, cells in blocks]
    height = GAP + sum(
        _height(lines) + GAP + sum(_row_height(row, box) + GAP for row in grid)
        for (lines, _), grid in zip(blocks, rows, strict=True)
    )
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for (lines, _), grid in zip(blocks, rows, strict=True):
        y = _write(draw, lines, GAP, y) + GAP
        for row in grid:
            for column, cell in enumerate(row):
                _paint(sheet, cell, GAP + column * (box + GAP), y + _heading_height(row), box)
            y += _row_height(row, box) + GAP
    words = {"Title": evidence.title.encode("ascii", "replace").decode(), "Comment": f"verdict: {evidence.verdict}"}
    return png(sheet, words)


def _shown_side(side: int) -> int:
    """The longer side on the sheet: small pictures grow by a whole number, large ones shrink."""
    return side * -(-SMALLEST // side) if side < SMALLEST else min(side, LARGEST)


def _title(evidence: Evidence, width: int) -> list[Line]:
    """The verdict, what was compared, and how to read the sheet."""
    ink = INKS[evidence.verdict]
    lines = _wrapped(f"{evidence.verdict.upper()}: {evidence.title}", 24, ink, width, most=3)
    lines += _wrapped(evidence.summary, 15, INK, width, most=6)
    how = "Below each picture: its difference to the reference, each channel times the factor that is stated."
    return lines + _wrapped(how, 13, FAINT, width)


def _cell(panel: Panel, scene: Scene, box: int) -> Cell:
    """What stands in one cell."""
    ink = INK if panel.route in {BASE, REFERENCE} else INKS.get(panel.status, INK)
    word = "" if panel.status == "info" or panel.route in {BASE, REFERENCE} else f" ({WORDS[panel.status]})"
    heading = _wrapped(f"{panel.route}{word}", 16, ink, box, most=2)
    remarks = [line for remark in panel.remarks[:2] for line in _wrapped(remark, 13, FAINT, box, most=4)]
    under = [
        line
        for figure in panel.figures
        if figure.value is not None
        for line in _wrapped(spoken(figure), 13, INK, box, most=2)
    ]
    if panel.pixels is None:
        return Cell(heading, None, _wrapped("no picture", 14, FAINT, box - 24), None, [*under, *remarks])
    pixels = require_pixels(panel.pixels, panel.route)
    scale = box / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    reference = scene.panel(REFERENCE)
    made: Pixels | None = None
    if panel.route == REFERENCE:
        note = "what the others are held to"
    elif reference is None or reference.pixels is None:
        note = "no reference to compare with"
    elif (found := difference(pixels, require_pixels(reference.pixels, REFERENCE))) is None:
        note = "not of the reference's size"
    else:
        factor, most = factor_of(found), int(found.max())
        made = resized(amplified(pooled(found, box), factor), width, height)
        what = "what the adapter changes" if panel.route == BASE else "difference"
        note = f"{what} times {factor}, largest {most} of 255" if most else "no pixel differs"
    return Cell(heading, resized(pixels, width, height), [], made, [*_wrapped(note, 13, FAINT, box), *under, *remarks])


def _wrapped(text: str, size: int, ink: str, width: int, most: int | None = None) -> list[Line]:
    word = shown(text)
    return [Line(line, size, ink) for line in folded(word, font_for(word, size), width, most)]


def _height(lines: list[Line]) -> int:
    return sum(_step(line) for line in lines)


def _step(line: Line) -> int:
    return round(line.size * 1.35)


def _heading_height(row: list[Cell]) -> int:
    return max(_height(cell.heading) for cell in row)


def _cell_height(cell: Cell, box: int) -> int:
    pictures = [pixels.shape[0] + PAD for pixels in (cell.picture, cell.difference) if pixels is not None]
    return PAD + (sum(pictures) or box // 2 + PAD) + _height(cell.under)


def _row_height(row: list[Cell], box: int) -> int:
    return _heading_height(row) + max(_cell_height(cell, box) for cell in row)


def _write(draw: ImageDraw.ImageDraw, lines: list[Line], x: int, y: int) -> int:
    """Writes lines from (x, y) down; says where they end."""
    for line in lines:
        draw.text((x, y), line.text, fill=line.ink, font=font_for(line.text, line.size))
        y += _step(line)
    return y


def _paint(sheet: Image.Image, cell: Cell, x: int, y: int, box: int) -> None:
    """Paints a cell whose picture begins at (x, y), its heading above."""
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(sheet)
    _write(draw, cell.heading, x, y - _height(cell.heading))
    y += PAD
    if cell.picture is None:
        draw.rectangle((x, y, x + box - 1, y + box // 2 - 1), fill=BOX)
        _write(draw, cell.instead, x + 12, y + 12)
        y += box // 2 + PAD
    for pixels in (cell.picture, cell.difference):
        if pixels is not None:
            sheet.paste(Image.fromarray(pixels), (x, y))
            y += pixels.shape[0] + PAD
    _write(draw, cell.under, x, y)
