"""What diffusers' loaders of transformers make of every spelling of a LoRA, run, beside what the tables foretell.

    python benchmarks/loading_runs.py                  the architectures that benchmarks/results/loading-runs.json lacks
    python benchmarks/loading_runs.py --again flux1    one anew; all where none is named

Each architecture's transformer stands on the meta device at its published width with two blocks of each sort; the mixin
of its pipeline loads one LoRA over all of its layers, spelt in every way that there is, and the factors and scales that
each layer was given are compared with the truth. Every architecture is kept as soon as it is known. Exits with 1 where
`inspect --for diffusers` says otherwise of any layer.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RESULTS = ROOT / "benchmarks" / "results" / "loading-runs.json"
SHOWN = 4


def run(case: Any, place: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """spelling → how many layers are right, why the file is refused, and how the tables differ from that."""
    from safetensors.torch import save_file

    from loratools.errors import LoratoolsError
    from tests.judges import by_mixin, spellings

    model = by_mixin.small(case)
    every = spellings.layers(case.architecture, case.component, model)
    found: dict[str, Any] = {}
    for title, spell, shapes in cases(case.architecture, every):
        if only and title not in only:
            continue
        both = [
            spellings.lora(case.architecture, case.component, shapes, scales)
            for scales in (spellings.SCALED, spellings.PLAIN)
        ]
        try:
            spelt = spell(*both)
        except LoratoolsError as problem:
            found[title] = {"not written": problem.message}
            continue
        file = place / "lora.safetensors"
        save_file(spelt.tensors, file, metadata=dict(spelt.metadata))
        refused = None
        try:
            done = by_mixin.right(by_mixin.loaded(case, model, file), spelt.true)
        except Exception as problem:  # noqa: BLE001 - whatever the loader raises is its answer
            done, refused = set(), f"{type(problem).__name__}: {str(problem)[:120]}"
        found[title] = {"right": len(done), "of": len(spelt.true)} | ({"refused": refused} if refused else {})
        told, reasons, unknown = foretold(file, case)
        if unknown:
            found[title]["not foretold"] = reasons
            continue
        said = any(text.startswith("refuses") for text in reasons)
        if done != told or said != (refused is not None):
            found[title]["said"] = reasons
            found[title]["differs"] = kinds(sorted(done ^ told))
    return found


def cases(name: str, every: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every spelling of a file over all layers, and of one over the layers of blocks, which are what trainers train."""
    from tests.judges.spellings import spellings

    blocks = {path: shape for path, shape in every.items() if re.search(r"\.\d+\.", path)}
    for title, spell in spellings(name):
        yield title, spell, every
        if title in BLOCKS_TOO and len(blocks) < len(every):
            yield f"{title}, blocks alone", spell, blocks


BLOCKS_TOO = (
    "kohya", "comfy", "lora_unet_, alpha", "lora_transformer_, alpha", "diffusion_model., lora_A",
    "diffusion_model., original, lora_A", "no prefix, original, lora_A", "base_model.model., original, lora_A",
)  # fmt: skip
"""The spellings for which some converters know the layers of blocks alone, or ask for all of them."""


def foretold(file: Path, case: Any) -> tuple[set[str], list[str], int]:
    """The paths that the tables say are right, the reasons for the others, and how many nobody knows of."""
    import loratools as lt
    from loratools.formats.runtimes import loads

    (answer,) = loads(lt.open(file, arch=case.architecture).reading, "diffusers")
    layers = zip(answer.subject.layers, answer.verdicts, strict=True)
    told = {path for layer, verdict in layers if verdict.loads for path in layer.adapter.target.paths}
    return told, [reason.text for reason, _ in answer.reasons], answer.unknown


def kinds(paths: list[str]) -> list[str]:
    """The paths with their numbers left out, a few of them."""
    named = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", path) for path in paths))
    return named[:SHOWN] + ([f"… {len(named)} in all"] if len(named) > SHOWN else [])


def main() -> None:
    """Run what is missing, and say where the tables are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--again", action="store_true", help="also what is known already")
    chosen = parser.parse_args()
    import diffusers
    import peft
    import torch

    from tests.judges.by_mixin import CASES

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # what the loaders raise, they log as well
    versions = {module.__name__: module.__version__ for module in (diffusers, peft)}
    kept: dict[str, Any] = {"versions": versions, "runs": {}}
    if RESULTS.exists():
        before = json.loads(RESULTS.read_text(encoding="utf-8"))
        kept = before if before["versions"] == versions else kept
    for case in CASES:
        if chosen.architectures and case.architecture not in chosen.architectures:
            continue
        if case.architecture in kept["runs"] and not chosen.again:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            kept["runs"][case.architecture] = found = run(case, Path(place))
        kept["runs"] = dict(sorted(kept["runs"].items()))
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        odd = {title: row for title, row in found.items() if "differs" in row}
        print(case.architecture, f"{time.perf_counter() - started:.0f} s, {len(odd)} differ", flush=True)
        for title, row in odd.items():
            print("   ", title, json.dumps(row, ensure_ascii=False))
    missing = [name for name, found in kept["runs"].items() if any("differs" in row for row in found.values())]
    sys.exit(f"the tables say otherwise of {', '.join(missing)}" if missing else 0)


if __name__ == "__main__":
    main()
