"""What `inspect --plot` and `compare --plot` draw, from the documents that they print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratools.errors import UsageError
from loratools.reports.block_map import block_maps
from loratools.reports.plot import Plot

Document = Mapping[str, Any]


def weights_plot(document: Document) -> Plot:
    """The norm of every module's delta, and the spectra; raises UsageError for what is no adapter."""
    if "weights" not in document:
        raise UsageError(
            f"there is nothing to draw: the file's role is {document['role']}",
            path=document["path"],
            hint="a plot shows the changes of an adapter",
        )
    weights = document["weights"]
    rows = weights["modules"]
    told = [f"norm of the whole change: {weights['norm']:.6g}"]
    if weights["dead"]:
        told.append(f"{len(weights['dead'])} modules change nothing")
    if weights["not_measured"]:
        told.append(f"{weights['not_measured']} modules were not measured: their change is no product of two factors")
    return Plot(
        title=f"{document['path']}: what it changes",
        measure="norm of the delta",
        maps=block_maps((row["module"], row["norm"]) for row in rows),
        spectra={row["module"]: row["singular_values"] for row in rows},
        remarks=tuple(told),
    )


def comparison_plot(document: Document) -> Plot:
    """The relative error of every module; a module on one side only has an infinite one."""
    rows = sorted(document["modules"], key=lambda row: _in_order(row["module"]))
    alone = [row["module"] for row in rows if row["where"] != "both"]
    told = [f"worst relative error {'infinite' if document['worst'] is None else format(document['worst'], '.3g')}"]
    told.append(f"tolerance {document['tolerance']:g}")
    if alone:
        told.append(f"{len(alone)} modules stand on one side only and are drawn as the largest")
    errors = [(row["module"], float("inf") if row["relative_error"] is None else row["relative_error"]) for row in rows]
    return Plot(
        title=f"{document['a']} against {document['b']}",
        measure="relative error of the delta",
        maps=block_maps(errors),
        spectra={},
        remarks=tuple(told),
    )


def _in_order(module: str) -> list[tuple[int, str]]:
    """A key by which block 2 stands before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in module.split(".")]
