"""Resize 128 → 32 by the factors, against forming each delta and decomposing it, as kohya's script does.

    python benchmarks/resize.py [--rounds 3] [--quick]

Both start from the same float16 factors and end with float16 factors of rank 32, on one thread. They take turns in one
process, shape by shape (A B A B); medians are compared, CPU seconds beside wall seconds. Peak memory is that of a
process of its own for each, above what importing takes. The small set are the layers of an SD1.5 LoRA's first two down
blocks and of one layer of its text encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import torch

from loratools.adapters.adapter import Adapter
from loratools.adapters.resize import Resizable
from loratools.model import Alpha, Target
from loratools.tensors.lazy import LazyTensor, tensor_bytes

OLD, NEW = 128, 32
# (out, in, kernel…) → how many of them the small set has
SMALL = {
    (320, 320): 16,
    (320, 768): 4,
    (2560, 320): 2,
    (320, 1280): 2,
    (640, 640): 16,
    (640, 768): 4,
    (5120, 640): 2,
    (640, 2560): 2,
    (768, 768): 4,
    (3072, 768): 1,
    (768, 3072): 1,
}
LARGE = ((320, 320, 3, 3), (1280, 1280), (10240, 1280))
Shape = tuple[int, ...]


def factors(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """down [128, in, kernel…] and up [out, 128, 1…] in float16, with singular values that fall."""
    generator = torch.Generator().manual_seed(sum(shape))
    down = torch.randn(OLD, *shape[1:], generator=generator)
    up = torch.randn(shape[0], OLD, generator=generator) * torch.arange(1, OLD + 1) ** -0.7
    return down.half(), up.reshape(shape[0], OLD, *(1 for _ in shape[2:])).half()


def ours(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """loratools: from bytes to bytes, with the bound of its rounding."""
    held = {
        role: LazyTensor.from_bytes("F16", tuple(tensor.shape), tensor_bytes(tensor, "F16"))
        for role, tensor in (("down", down), ("up", up))
    }
    made = Resizable(Adapter(Target("unet", ("layer",)), "lora", held, Alpha())).at(NEW)
    return made.factors["up"].load(), made.factors["down"].load()


def theirs(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The delta formed in float32, torch's default decomposition, and its first columns."""
    delta = up.float().flatten(1) @ down.float().flatten(1)
    left, values, right = torch.linalg.svd(delta)
    return (left[:, :NEW] @ torch.diag(values[:NEW])).half(), right[:NEW].half()


CONTESTANTS: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "loratools": ours,
    "reconstruct and SVD": theirs,
}


def race(shape: Shape, rounds: int) -> dict[str, dict[str, object]]:
    """Both on one shape, in turn."""
    down, up = factors(shape)
    delta = up.double().flatten(1) @ down.double().flatten(1)
    best = float(torch.linalg.vector_norm(torch.linalg.svdvals(delta.float())[NEW:]) / torch.linalg.vector_norm(delta))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    errors = {}
    for number in range(rounds + (rounds > 1)):
        for name, run in CONTESTANTS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            left, right = run(down, up)
            sample = time.perf_counter() - wall, time.process_time() - cpu
            if number or rounds == 1:
                samples[name].append(sample)
            product = left.double().flatten(1) @ right.double().flatten(1)
            errors[name] = float(torch.linalg.vector_norm(delta - product) / torch.linalg.vector_norm(delta))
    return {
        name: {
            "wall_median": round(statistics.median(wall for wall, _ in found), 5),
            "cpu_median": round(statistics.median(cpu for _, cpu in found), 5),
            "error": errors[name],
            "best_error": best,
            "samples": found,
        }
        for name, found in samples.items()
    }


def peak(shape: Shape, name: str) -> float:
    """Megabytes that one run adds to a process that has imported everything and made the factors."""
    words = [sys.executable, __file__, "--measure", name, "--shape", ",".join(map(str, shape))]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def measure(shape: Shape, name: str) -> float:
    """The same, in this process."""
    CONTESTANTS[name](*factors((64, 64)))
    down, up = factors(shape)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = _status("VmRSS")
    CONTESTANTS[name](down, up)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A figure of this process, in kilobytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


def main() -> None:
    """Run, print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="leave the largest shape out")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(measure(tuple(map(int, given.shape.split(","))), given.measure))
        return
    rows: dict[str, dict[str, dict[str, object]]] = {}
    totals = dict.fromkeys(CONTESTANTS, 0.0)
    for shape in (*SMALL, *(LARGE[:-1] if given.quick else LARGE)):
        found = race(shape, 1 if max(shape) > 6000 else given.rounds)
        for name, row in found.items():
            row["peak_mb"] = round(peak(shape, name), 1)
            totals[name] += SMALL.get(shape, 0) * float(str(row["cpu_median"]))
        rows["×".join(map(str, shape))] = found
        mine, other = (float(str(found[name]["cpu_median"])) for name in CONTESTANTS)
        memory = " / ".join(str(found[name]["peak_mb"]) for name in CONTESTANTS)
        print(f"{'×'.join(map(str, shape)):>14}: {mine:.4f} s / {other:.4f} s CPU, {other / mine:.1f} ×, {memory} MB")
    mine, other = totals.values()
    print(f"     small set: {mine:.3f} s / {other:.3f} s CPU, {other / mine:.1f} ×")
    document = {
        "what": "resize 128 to 32",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.processor() or platform.machine(), "load": os.getloadavg()},
        "torch": torch.__version__,
        "small_set": {**{name: round(value, 4) for name, value in totals.items()}, "ratio": round(other / mine, 2)},
        "shapes": rows,
    }
    out = Path(__file__).parent / "results" / f"{document['date']}-resize.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
