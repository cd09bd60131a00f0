"""A report's folder: the page, the contact sheet and the operation's own document, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from loratools.reports.evidence import Evidence
from loratools.reports.page import page
from loratools.reports.sheet import contact_sheet
from loratools.tensors.folder import write_folder
from loratools.tensors.output import guard_folder

PAGE = "index.html"
SHEET = "contact-sheet.png"
DOCUMENT = "report.json"
NAMES = (PAGE, SHEET, DOCUMENT)


def guard_report(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise what `write_report` would for a place that a report cannot have, before there is one.

    OutputExists without `overwrite`, OutputRefused for a folder that holds what no report does, PathNotFound where the
    folder around it is missing.
    """
    guard_folder(Path(folder), (), NAMES, overwrite=overwrite)


def write_report(folder: str | os.PathLike[str], evidence: Evidence, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write index.html, contact-sheet.png (where there are pictures) and report.json (where there is a document).

    Returns the paths; raises as `guard_report`, ResourceError where disk or permission fail, and InternalError for
    pixels that are not uint8 [height, width, 3].
    """
    target = Path(folder)
    guard_report(target, overwrite=overwrite)
    contents: dict[str, bytes] = {PAGE: page(evidence).encode("utf-8")}
    if evidence.scenes:
        contents[SHEET] = contact_sheet(evidence)
    if evidence.document is not None:
        text = json.dumps(evidence.document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        contents[DOCUMENT] = text.encode("utf-8")
    write_folder(target, contents, overwrite=overwrite)
    return tuple(target / name for name in contents)
