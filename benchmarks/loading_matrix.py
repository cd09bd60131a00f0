"""What diffusers' loader makes of every sort of file, as it is and after `loratools convert --to diffusers`.

    python benchmarks/loading_matrix.py                    the whole matrix, into benchmarks/results/loading-matrix.md
    python benchmarks/loading_matrix.py --arch sd1         one architecture

Files are made by third parties (lycoris, peft, diffusers, sd-scripts' layout) over tiny pipelines of random weights;
the truth is what their own forward passes do, in float64. A module is right within a relative error of 1e-4.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RIGHT = 1e-4
ARCHITECTURES = ("sd1", "sdxl")
RESULT = ROOT / "benchmarks" / "results" / "loading-matrix.md"


def makers(architecture: str) -> dict[str, Callable[[Path, Path], Any]]:
    """Sort of file → what makes one in (pipeline folder, file) and gives back the truth."""
    from tests.judges import by_kohya, by_lycoris, by_peft

    components: dict[str, Any] = {"unet": None, "text_encoder": None}

    def lycoris(kind: str) -> Callable[[Path, Path], Any]:
        return lambda folder, out: by_lycoris.make(folder, out, kind, architecture=architecture)

    def peft(container: Any, **options: Any) -> Callable[[Path, Path], Any]:
        def make(folder: Path, out: Path) -> Any:
            where = out.with_suffix("") if container == "peft" else out
            return by_peft.make(
                folder, where, architecture=architecture, container=container, components=components, most=24, **options
            )

        return make

    def kohya(folder: Path, out: Path) -> Any:
        return by_kohya.make(folder, out, architecture=architecture, components=components, most=24)

    found = {
        "kohya, mixed alphas": kohya,
        "PEFT folder": peft("peft"),
        "diffusers": peft("diffusers"),
        "diffusers, DoRA": peft("diffusers", use_dora=True),
    }
    return found | {f"LyCORIS {kind}": lycoris(kind) for kind in by_lycoris.KINDS}


def loaded(folder: Path, file: Path, truth: Any) -> str:
    """What diffusers does with a file: ok, how many modules are wrong, nothing at all, or an exception."""
    from tests.judges.load import deltas_after_diffusers_load
    from tests.judges.truth import compare

    if file.is_dir():
        inside = sorted(file.rglob("adapter_model.safetensors"))
        file = inside[0]
    try:
        found = deltas_after_diffusers_load(folder, file)
    except Exception as problem:  # noqa: BLE001 - whatever the loader raises is the answer
        return f"refused ({type(problem).__name__})"
    if not found.deltas and not found.biases:
        return "**nothing loaded**"
    judged = compare(found.deltas, truth.deltas)
    lost = sum(where not in found.biases for where in truth.biases)
    wrong = judged.wrong(RIGHT)
    if not wrong and not lost:
        return "ok"
    return f"**{wrong} of {len(truth.deltas)} wrong**" if wrong else f"**{lost} biases lost**"


def converted(folder: Path, truth: Any, out: Path, architecture: str) -> str:
    """The same after our conversion, with `--to-kind lora` and the base where the kind needs it."""
    from loratools.errors import LoratoolsError
    from loratools.operations.convert import convert
    from loratools.operations.lora import open_lora

    plain = set(open_lora(truth.path, arch=architecture).kinds) <= {"lora"}
    how: dict[str, Any] = {"to": "diffusers", "arch": architecture}
    try:
        convert(truth.path, **how).save(out)
    except LoratoolsError as problem:
        if plain and "Tucker" not in problem.message:
            return f"refused: {problem.message}"
        try:
            convert(truth.path, **how, to_kind="lora", base=folder).save(out)
        except LoratoolsError as reason:
            return f"refused: {reason.message.partition(': ')[2] or reason.message}"
        return f"{loaded(folder, out, truth)} (`--to-kind lora`)"
    return loaded(folder, out, truth)


def main() -> None:
    """Make the matrix and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arch", action="append", choices=ARCHITECTURES, help="only this one; may stand more than once"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    import diffusers
    import peft
    import torch

    from loratools.pipelines.synthetic import make_pipeline

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    rows: dict[str, list[str]] = {}
    architectures = chosen.arch or ARCHITECTURES
    work = Path(tempfile.mkdtemp())
    try:
        for architecture in architectures:
            folder = make_pipeline(architecture, work / architecture)
            for at, (name, make) in enumerate(makers(architecture).items()):
                truth = make(folder, work / f"{architecture}_{at}.safetensors")
                cells = rows.setdefault(name, [])
                cells.append(loaded(folder, Path(truth.path), truth))
                cells.append(converted(folder, truth, work / f"{architecture}_{at}_out.safetensors", architecture))
                print(architecture, name, *cells[-2:], sep=" | ", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work)
    heads = [f"{name}: {when}" for name in architectures for when in ("as it is", "converted")]
    lines = [
        f"diffusers {diffusers.__version__}, peft {peft.__version__}, tiny pipelines of random weights.",
        "",
        f"| file | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
