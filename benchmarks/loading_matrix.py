"""What diffusers' loaders make of every sort of file, as it is and after a conversion by loratools.

    python benchmarks/loading_matrix.py             what is still missing in benchmarks/results/loading-matrix.json
    python benchmarks/loading_matrix.py --again     everything anew
    python benchmarks/loading_matrix.py --arch sd1 --sort "LyCORIS full"

Files are made by third parties (lycoris, peft, diffusers, kohya's layout) over tiny pipelines of random weights; the
truth is what their own forward passes or merges do, in float64. A module is right within a relative error of 1e-4.
"As it is" is `load_lora_weights` of the file; "converted" is the same after `convert --to diffusers`, or, where that is
refused, after `convert --to diffusers --to-kind lora --base PIPELINE`, or, where no LoRA can hold it or the pipeline
has no loader, the weights after `merge PIPELINE FILE`; "PEFT" is `PeftModel.from_pretrained` after `convert --to peft`.
Every cell is kept as soon as it is known, so an interrupted run goes on where it stopped; the tables in
loading-matrix.md and in README.md are made from the cells.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RIGHT = 1e-4
UNETS = ("sd1", "sd2", "sdxl")
ARCHITECTURES = (
    *UNETS, "sd3", "flux1", "flux2", "chroma", "wan2.1", "wan2.2", "hunyuan-video", "ltx-video", "qwen-image",
    "z-image", "sana", "pixart", "kandinsky2.2", "stable-cascade", "hunyuan-dit",
)  # fmt: skip
RESULTS = ROOT / "benchmarks" / "results" / "loading-matrix.json"
TABLE = RESULTS.with_suffix(".md")

NOTES = {
    "diffusers, DoRA": "diffusers saves a magnitude as `lora_magnitude_vector`. Its own models take that; a text "
    "encoder is loaded by transformers, which asks for `lora_magnitude_vector.weight`, reports it missing and starts "
    "it anew, so that every layer of the text encoder is wrong. A converted file says `.weight`, which both take.",
    "LyCORIS locon": "on Stable Diffusion the one wrong layer is the text encoder's: a LoRA of q, k or v is dropped "
    "where the text encoder has none of out_proj.",
    "kohya, ComfyUI": "the converters for FLUX.1, Chroma and HunyuanVideo split fused layers at 3072 rows, which no "
    "tiny pipeline has; benchmarks/loading_runs.py loads such files into models of the published width.",
}
"""What is behind a sort of file's figures."""

Cell = dict[str, Any]
Sort = Callable[[Path, Path, str], Any]


def sorts(architecture: str) -> dict[str, Sort]:
    """The sorts of files that there are for a pipeline."""
    from loratools.architectures.registry import architecture as known
    from tests.judges.wild import SORTS
    from tests.judges.wild_transformers import sorts as of_transformers

    if architecture in UNETS:
        return dict(SORTS)
    return of_transformers(known(architecture).denoiser.name)


def loaded(folder: Path, file: Path, truth: Any) -> Cell:
    """What diffusers does with a file: how many of its modules are right, how many biases are lost, or why not."""
    from tests.judges.load import deltas_after_diffusers_load

    if file.is_dir():
        file = file / "adapter_model.safetensors"
    return judged(partial(deltas_after_diffusers_load, folder, file), truth)


def judged(load: Callable[[], Any], truth: Any) -> Cell:
    """What a loader does."""
    from tests.judges.truth import compare

    try:
        found = load()
    except Exception as problem:  # noqa: BLE001 - whatever the loader raises is the answer
        return {"outcome": "refused", "why": f"{type(problem).__name__}: {str(problem)[:160]}"}
    answer = compare(found.deltas, truth.deltas)
    wrong, lost = answer.wrong(RIGHT), sum(where not in found.biases for where in truth.biases)
    if not found.deltas and not found.biases:
        return {"outcome": "nothing", "wrong": len(truth.deltas), "of": len(truth.deltas)}
    outcome = "ok" if not wrong and not lost else "wrong"
    return {"outcome": outcome, "wrong": wrong, "of": len(truth.deltas), "lost_biases": lost, "worst": answer.worst}


WAYS: tuple[dict[str, str], ...] = ({}, {"to_kind": "lora"})
"""How a file is converted: as it is, else as plain LoRA over its base."""


def converted(folder: Path, truth: Any, out: Path, architecture: str) -> Cell:
    """The same after our conversion; merged where that is refused or where there is no loader."""
    from loratools.errors import LoratoolsError
    from loratools.formats.loads_diffusers import not_in_diffusers
    from loratools.operations.convert import convert

    why = ""
    for way in () if not_in_diffusers(architecture) else WAYS:
        out.unlink(missing_ok=True)
        try:
            convert(truth.path, to="diffusers", arch=architecture, **_based(way, folder)).save(out)
        except LoratoolsError as problem:
            why = problem.message
            continue
        return {**loaded(folder, out, truth), "to_kind": way.get("to_kind")}
    return {**merged(folder, truth, out.with_suffix(""), architecture), "merged": True, "why": why}


def merged(folder: Path, truth: Any, out: Path, architecture: str) -> Cell:
    """What `merge` makes of the pipeline's weights."""
    from loratools.operations.merge import merge
    from tests.judges.merged import deltas_after_merge

    return judged(
        lambda: deltas_after_merge(folder, merge(folder, [(truth.path, 1.0)], out, arch=architecture).path), truth
    )


def by_peft(folder: Path, truth: Any, out: Path, architecture: str) -> Cell:
    """What PEFT does with the file after our conversion."""
    from loratools.errors import LoratoolsError
    from loratools.operations.convert import convert
    from tests.judges.load import deltas_after_every_peft_load

    why = ""
    for number, way in enumerate(WAYS):
        place = out.with_name(f"{out.stem}-peft-{number}")
        try:
            convert(truth.path, to="peft", arch=architecture, **_based(way, folder)).save(place)
        except LoratoolsError as problem:
            why = problem.message
            continue
        components = sorted({component for component, _ in (*truth.deltas, *truth.biases)})
        done = judged(partial(deltas_after_every_peft_load, folder, components, place), truth)
        return {**done, "to_kind": way.get("to_kind")}
    return {"outcome": "refused", "why": why}


def _based(way: dict[str, str], folder: Path) -> dict[str, Any]:
    return {**way, "base": folder} if way else {}


HALVES: dict[str, Callable[..., Cell]] = {"after": converted, "peft": by_peft}


def measure(chosen: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Fill in the cells that are missing, and keep each."""
    import torch

    from loratools.pipelines.synthetic import make_pipeline

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for architecture in chosen.arch or ARCHITECTURES:
        cells = kept["cells"].setdefault(architecture, {})
        kept["cells"] = {name: kept["cells"][name] for name in ARCHITECTURES if name in kept["cells"]}
        there = sorts(architecture)
        missing = [
            name for name in there if (chosen.again or not complete(cells.get(name))) and name in (chosen.sort or there)
        ]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = make_pipeline(architecture, Path(place) / "pipeline")
            for at, name in enumerate(missing):
                started = time.perf_counter()
                known = {} if chosen.again else cells.get(name, {})
                cells[name] = cell(there[name], folder, Path(place) / str(at), architecture, known)
                kept["cells"][architecture] = {sort: cells[sort] for sort in there if sort in cells}
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
                seconds = f"{time.perf_counter() - started:.1f} s"
                print(architecture, name, *map(said, cells[name].values()), seconds, sep=" | ", flush=True)


def complete(known: dict[str, Cell] | None) -> bool:
    """Whether all is known of a cell; a refusal of ours is tried again, since a merge may do."""
    if not known:
        return False
    if known["before"]["outcome"] == "not made":
        return True
    return {"before", *HALVES} <= known.keys() and known["after"]["outcome"] != "refused"


def cell(
    make: Sort, folder: Path, place: Path, architecture: str, known: dict[str, Cell] | None = None
) -> dict[str, Cell]:
    """Make a file and ask what becomes of it, beyond what is known."""
    place.mkdir()
    try:
        truth = make(folder, place / "made.safetensors", architecture)
    except ValueError as problem:  # the library or the architecture has no such files
        return {"before": {"outcome": "not made", "why": str(problem)}}
    found = dict(known or {})
    if found.get("after", {}).get("outcome") == "refused":
        del found["after"]
    if "before" not in found:
        found["before"] = loaded(folder, Path(truth.path), truth)
    for half, answer in HALVES.items():
        if half not in found:
            found[half] = answer(folder, truth, place / f"{half}.safetensors", architecture)
    return {half: found[half] for half in ("before", *HALVES)}


def said(half: Cell) -> str:
    """A half of a cell in a word or two."""
    if half["outcome"] == "wrong" and not half["wrong"]:
        return f"**{half['lost_biases']} biases lost**"
    words = {"nothing": "**nothing**", "wrong": f"**{half.get('wrong')}/{half.get('of')} wrong**"}
    way = " as LoRA" if half.get("to_kind") else " merged" if half.get("merged") else ""
    return words.get(half["outcome"], half["outcome"]) + way


def table(kept: dict[str, Any], names: tuple[str, ...]) -> str:
    """Sorts of files by pipelines: as it is → converted · by PEFT."""
    columns = {name: kept["cells"][name] for name in names if name in kept["cells"]}
    found = list(dict.fromkeys(sort for cells in columns.values() for sort in cells))
    lines = [f"| file | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for sort in found:
        row = (cells.get(sort) for cells in columns.values())
        lines.append(f"| {sort} | {' | '.join(told(one) if one else '' for one in row)} |")
    return "\n".join(lines) + "\n"


def told(one: dict[str, Cell]) -> str:
    """A cell."""
    text = " → ".join(said(one[half]) for half in ("before", "after") if half in one)
    return text + (f" · {said(one['peft'])}" if "peft" in one else "")


def refusals(kept: dict[str, Any]) -> str:
    """Why what is refused after all is refused, and why what the library itself cannot make is not there."""
    found: dict[str, list[str]] = {}
    for architecture, cells in kept["cells"].items():
        for sort, one in cells.items():
            for half in one.values() if "after" not in one else (one["after"], one.get("peft", {})):
                if half.get("outcome") in ("refused", "not made"):
                    found.setdefault(f"{sort}, {half['outcome']}: {half['why']}", []).append(architecture)
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
    legend = (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip()
    notes = "".join(f"- {sort}: {note}\n" for sort, note in NOTES.items())
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    transformers_ = tuple(name for name in ARCHITECTURES if name not in UNETS)
    tables = [table(kept, UNETS), table(kept, transformers_[:7]), table(kept, transformers_[7:])]
    text = [f"{told}.\n", f"{legend}\n", *tables, notes, "Not there:\n", refusals(kept)]
    TABLE.write_text("\n".join(text), encoding="utf-8")
    outcomes = [
        (architecture, name, half)
        for architecture, cells in kept["cells"].items()
        for name, one in cells.items()
        for half in (one.get("after", {}), one.get("peft", {}))
    ]
    wrong = [
        f"{architecture}, {name}"
        for architecture, name, half in outcomes
        if half.get("outcome") in ("wrong", "nothing")
    ]
    sys.exit(f"wrong after conversion: {'; '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
