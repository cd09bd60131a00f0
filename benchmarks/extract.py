"""Extraction against full decompositions: the engine shape by shape, and SD1.5 at rank 64 end to end.

    python benchmarks/extract.py shapes       every shape of SD1.5's layers: the engine, thin and full SVD
    python benchmarks/extract.py end-to-end   SD1.5, rank 64: CPU and peak memory of `loratools extract`
    python benchmarks/extract.py              both, and the ratio of the whole

All with one thread; CPU seconds, because the machine may be busy. `full` is `torch.linalg.svd` as it comes (a square
basis of the longer side as well), `thin` the same with `full_matrices=False`; beyond LONGEST columns the full one would
take gigabytes and minutes, and the thin one stands for it: a lower bound. The whole of the full decompositions is the
sum of their times over all layers of the model. Results are kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bars import Contestant, bar, machine, run_once
from tuned_pair import SPECTRA, change

from loratools.adapters.range_finder import truncated_svd
from loratools.architectures.architecture import shapes

HERE = Path(__file__).resolve().parent
RANK = 64
LONGEST = 12_000
"""Columns beyond which the full decomposition is not run."""
BRIEF = 0.5
"""CPU seconds below which the best of three runs is taken."""


def layers() -> Counter[tuple[int, int]]:
    """(rows, columns) of every linear layer and convolution of SD1.5 → how many there are."""
    return Counter(
        (shape[0], prod(shape[1:]))
        for table in shapes("sd1").values()
        for path, shape in table.items()
        if len(shape) > 1 and not path.endswith("_embedding")
    )


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of a piece of work: once, or the best of three where it is brief."""
    found = []
    while True:
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
        if found[0] > BRIEF or len(found) == 3:
            return min(found)


def shape(rows: int, columns: int, *, full: bool) -> dict[str, object]:
    """The times of one shape, and how far the engine's errors are above the best ones."""
    row: dict[str, object] = {"rows": rows, "columns": columns}
    rank = min(RANK, rows, columns)
    for spectrum in SPECTRA:
        matrix = change(rows, columns, spectrum, f"{rows}x{columns}")
        found = truncated_svd(matrix, rank=rank)
        squares = torch.linalg.svdvals(matrix.double()).square()
        best = float((squares[rank:].sum() / squares.sum()).sqrt())
        left, right = found.halves()
        true = float((matrix.double() - left @ right).norm() / matrix.double().norm())
        row[spectrum] = {
            "engine": timed(lambda matrix=matrix: truncated_svd(matrix, rank=rank)),
            "error": true,
            "stated": found.error,
            "above_best": true / best - 1 if best > 1e-9 else 0.0,
        }
    row["thin"] = timed(lambda: torch.linalg.svd(matrix, full_matrices=False))
    row["full"] = timed(lambda: torch.linalg.svd(matrix)) if full and columns <= LONGEST else None
    return row


def by_shape() -> dict[str, object]:
    """A row for every shape, and what all layers of SD1.5 would take."""
    torch.set_num_threads(1)
    counts = layers()
    rows = []
    for (height, width), count in sorted(counts.items(), key=lambda item: prod(item[0])):
        row = shape(height, width, full=True) | {"layers": count}
        rows.append(row)
        full = "-" if row["full"] is None else f"{row['full']:.3f}"
        print(
            f"{height:>6}x{width:<6} x{count:<3} engine {row['easy']['engine']:.3f} / {row['slow']['engine']:.3f}  "
            f"thin {row['thin']:.3f}  full {full}  above best {row['easy']['above_best']:.1e} / "
            f"{row['slow']['above_best']:.1e}",
            file=sys.stderr,
        )

    def whole(pick: Callable[[dict[str, object]], float]) -> float:
        return sum(pick(row) * int(row["layers"]) for row in rows)

    totals = {
        "engine, easy": whole(lambda row: row["easy"]["engine"]),
        "engine, slow": whole(lambda row: row["slow"]["engine"]),
        "thin": whole(lambda row: row["thin"]),
        "full, at least": whole(lambda row: row["full"] or row["thin"]),
    }
    return {"rank": RANK, "shapes": rows, "all_layers": totals}


def end_to_end(folder: Path, spectrum: str) -> dict[str, object]:
    """`loratools extract --rank 64` of a pair of real size, as a process of its own."""
    subprocess.run([sys.executable, str(HERE / "tuned_pair.py"), str(folder), spectrum], check=True)
    out = folder / "out.safetensors"
    words = ["extract", str(folder / "base.safetensors"), str(folder / f"tuned-{spectrum}.safetensors")]
    words += ["-o", str(out), "--rank", str(RANK), "--json"]
    run = run_once(Contestant("loratools extract", [sys.executable, "-m", "loratools", *words], out))
    row = {
        "wall": round(run.wall, 2),
        "cpu": round(run.cpu, 2),
        "peak_mb": round(run.peak_kb / 1024, 1),
        "bytes": out.stat().st_size,
    }
    print(f"end to end, {spectrum}: {row}", file=sys.stderr)
    return row


def bars(document: dict[str, object]) -> list[dict[str, object]]:
    """The figures beside the bars that they should reach."""
    found = []
    table = document.get("shapes")
    if isinstance(table, dict):
        for row in table["shapes"]:
            name = f"{row['rows']}x{row['columns']}"
            if (row["rows"], row["columns"]) in ((1280, 1280), (1280, 5120), (1280, 11520)):
                for spectrum in SPECTRA:
                    ratio = row["thin"] / row[spectrum]["engine"]
                    found.append(bar(f"thin SVD / engine, {name}, {spectrum}", ratio, ">=", 8))
        worst = max(row[spectrum]["above_best"] for row in table["shapes"] for spectrum in SPECTRA)
        found.append(bar("worst error above the best possible", worst, "<=", 1e-3))
    for spectrum, row in (document.get("end_to_end") or {}).items():
        found.append(bar(f"peak MB, {spectrum}", row["peak_mb"], "<=", 700))
        if isinstance(table, dict):
            full = table["all_layers"]["full, at least"]
            found.append(bar(f"full SVD / loratools extract, CPU, {spectrum}", full / row["cpu"], ">=", 12))
    return found


def main() -> None:
    """Run what was asked for, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["shapes", "end-to-end"], help="shapes, end-to-end")
    parser.add_argument("--spectrum", choices=SPECTRA, action="append", help="for end-to-end (both)")
    parser.add_argument("--work", type=Path, help="a folder for 4 GB of files; what is there is used again")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    folder = options.work or Path(tempfile.mkdtemp(prefix="loratools-extract-"))
    kept = options.results / f"{datetime.now(UTC):%Y-%m-%d}-extract.json"
    ran: dict[str, object] = {"machine": machine()}
    if "end-to-end" in options.what:
        ran["end_to_end"] = {spectrum: end_to_end(folder, spectrum) for spectrum in options.spectrum or SPECTRA}
    if "shapes" in options.what:
        ran["shapes"] = by_shape()
    document = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    document |= ran | {"end_to_end": document.get("end_to_end", {}) | ran.get("end_to_end", {})}
    document["bars"] = bars(document)
    for row in document["bars"]:
        print(
            f"{'reached ' if row['reached'] else 'MISSED  '} {row['bar']}: {row['value']} {row['sign']} {row['limit']}"
        )
    options.results.mkdir(exist_ok=True)
    kept.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
