"""What diffusers' loader makes of every sort of file, as it is and after a conversion by loratools.

    python benchmarks/loading_matrix.py             what is still missing in benchmarks/results/loading-matrix.json
    python benchmarks/loading_matrix.py --again     everything anew
    python benchmarks/loading_matrix.py --arch sd1 --sort "LyCORIS full"

Files are made by third parties (lycoris, peft, diffusers, kohya's layout) over tiny pipelines of random weights; the
truth is what their own forward passes or merges do, in float64. A module is right within a relative error of 1e-4.
"As it is" is `load_lora_weights` of the file; "converted" is the same after `convert --to diffusers`, or, where that is
refused, after `convert --to diffusers --to-kind lora --base PIPELINE`. Every cell is kept as soon as it is known, so an
interrupted run goes on where it stopped; the tables in loading-matrix.md and in README.md are made from the cells.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RIGHT = 1e-4
ARCHITECTURES = ("sd1", "sd2", "sdxl")
RESULTS = ROOT / "benchmarks" / "results" / "loading-matrix.json"
TABLE = RESULTS.with_suffix(".md")

NOTES = {
    "diffusers, DoRA": "diffusers saves a magnitude as `lora_magnitude_vector`. Its UNets take that; a text encoder is "
    "loaded by transformers, which asks for `lora_magnitude_vector.weight`, reports it missing and starts it anew, so "
    "that every layer of the text encoder is wrong. A converted file says `.weight`, which both take.",
    "LyCORIS locon": "the one wrong layer is the text encoder's: a LoRA of q, k or v is dropped where the text encoder "
    "has none of out_proj.",
}
"""What is behind a sort of file's figures."""

Cell = dict[str, Any]


def loaded(folder: Path, file: Path, truth: Any) -> Cell:
    """What diffusers does with a file: how many of its modules are right, how many biases are lost, or why not."""
    from tests.judges.load import deltas_after_diffusers_load
    from tests.judges.truth import compare

    if file.is_dir():
        file = file / "adapter_model.safetensors"
    try:
        found = deltas_after_diffusers_load(folder, file)
    except Exception as problem:  # noqa: BLE001 - whatever the loader raises is the answer
        return {"outcome": "refused", "why": f"{type(problem).__name__}: {str(problem)[:160]}"}
    judged = compare(found.deltas, truth.deltas)
    wrong, lost = judged.wrong(RIGHT), sum(where not in found.biases for where in truth.biases)
    if not found.deltas and not found.biases:
        return {"outcome": "nothing", "wrong": len(truth.deltas), "of": len(truth.deltas)}
    outcome = "ok" if not wrong and not lost else "wrong"
    return {"outcome": outcome, "wrong": wrong, "of": len(truth.deltas), "lost_biases": lost, "worst": judged.worst}


def converted(folder: Path, truth: Any, out: Path, architecture: str) -> Cell:
    """The same after our conversion: of the file as it is, else as plain LoRA over its base, else why it is refused."""
    from loratools.errors import LoratoolsError
    from loratools.operations.convert import convert

    why = ""
    for way in ({}, {"to_kind": "lora", "base": folder}):
        out.unlink(missing_ok=True)
        try:
            convert(truth.path, to="diffusers", arch=architecture, **way).save(out)
        except LoratoolsError as problem:
            why = problem.message
            continue
        return {**loaded(folder, out, truth), "to_kind": way.get("to_kind")}
    return {"outcome": "refused", "why": why}


def measure(chosen: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Fill in the cells that are missing, and keep each."""
    import torch

    from loratools.pipelines.synthetic import make_pipeline
    from tests.judges.wild import SORTS

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for architecture in chosen.arch or ARCHITECTURES:
        cells = kept["cells"].setdefault(architecture, {})
        missing = [name for name in SORTS if (chosen.again or name not in cells) and name in (chosen.sort or SORTS)]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = make_pipeline(architecture, Path(place) / "pipeline")
            for at, name in enumerate(missing):
                started = time.perf_counter()
                try:
                    truth = SORTS[name](folder, Path(place) / f"{at}.safetensors", architecture)
                except ValueError as problem:  # lycoris has no BOFT for some widths
                    cell = {"before": {"outcome": "not made", "why": str(problem)}}
                else:
                    before = loaded(folder, Path(truth.path), truth)
                    after = converted(folder, truth, Path(place) / "out.safetensors", architecture)
                    cell = {"before": before, "after": after}
                cells[name] = cell
                kept["cells"][architecture] = {sort: cells[sort] for sort in SORTS if sort in cells}
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
                seconds = f"{time.perf_counter() - started:.1f} s"
                print(architecture, name, *map(said, cell.values()), seconds, sep=" | ", flush=True)


def said(cell: Cell) -> str:
    """A cell in a word or two."""
    if cell["outcome"] == "wrong" and not cell["wrong"]:
        return f"**{cell['lost_biases']} biases lost**"
    words = {"nothing": "**nothing**", "wrong": f"**{cell.get('wrong')}/{cell.get('of')} wrong**"}
    return words.get(cell["outcome"], cell["outcome"]) + (" as LoRA" if cell.get("to_kind") else "")


def table(kept: dict[str, Any]) -> str:
    """Sorts of files by pipelines: as it is → converted."""
    columns = {name: kept["cells"][name] for name in ARCHITECTURES if name in kept["cells"]}
    sorts = list(dict.fromkeys(sort for cells in columns.values() for sort in cells))
    lines = [f"| file | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for sort in sorts:
        row = (cells.get(sort) for cells in columns.values())
        lines.append(f"| {sort} | {' | '.join(' → '.join(map(said, cell.values())) if cell else '' for cell in row)} |")
    return "\n".join(lines) + "\n"


def refusals(kept: dict[str, Any]) -> str:
    """Why what is refused after all is refused, and why what the library itself cannot make is not there."""
    found: dict[str, list[str]] = {}
    for architecture, cells in kept["cells"].items():
        for sort, cell in cells.items():
            last = cell.get("after") or cell["before"]
            if "why" in last:
                found.setdefault(f"{sort}, {last['outcome']}: {last['why']}", []).append(architecture)
    return "".join(f"- {why} ({', '.join(where)})\n" for why, where in found.items())


def main() -> None:
    """Fill in the matrix and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arch", action="append", choices=ARCHITECTURES, help="only this one; may stand more than once"
    )
    parser.add_argument("--sort", action="append", help="only this sort of file; may stand more than once")
    parser.add_argument("--again", action="store_true", help="also what is known already")
    chosen = parser.parse_args()
    import diffusers
    import peft
    import transformers

    versions = {module.__name__: module.__version__ for module in (diffusers, peft, transformers)}
    kept: dict[str, Any] = {"versions": versions, "cells": {}}
    if RESULTS.exists():
        before = json.loads(RESULTS.read_text(encoding="utf-8"))
        if before["versions"] == versions:
            kept = before
    measure(chosen, kept)
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    legend = (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip()
    notes = "".join(f"- {sort}: {note}\n" for sort, note in NOTES.items())
    text = [f"{told}.\n", f"{legend}\n", table(kept), notes, "Not there:\n", refusals(kept)]
    TABLE.write_text("\n".join(text), encoding="utf-8")
    outcomes = [(name, cell.get("after", {})) for cells in kept["cells"].values() for name, cell in cells.items()]
    wrong = [name for name, after in outcomes if after.get("outcome") in ("wrong", "nothing")]
    sys.exit(f"wrong after conversion: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
