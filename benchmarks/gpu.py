"""Every check that wants a GPU, as one resumable run: `python benchmarks/gpu.py OUT [--size tiny] [--device cpu]`.

Real-size Stable Diffusion 1.5 and SDXL pipelines with random weights are made, validated in bfloat16 and float16 (20
steps at their native resolution, all routes, negative controls), merged and extracted at rank 64 on the device; and so
is a transformer of FLUX.1's size in bfloat16, 24 GB written shard by shard, validated in four steps at 512 pixels: at
most two of it lie on the disk at once, and one is in memory, in float32 where that is the judge.
Each task is a process of its own: one that fails or runs out of memory costs that task alone. OUT/results.json is
written after every task; a task that stands there is not run again, so a run that its time limit cut short goes on
when it is called again. Pictures in OUT are kept within 4 MiB. What is made of an architecture is removed once all of
its tasks are done, unless --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_tasks import DTYPES, LEAST, TASKS, Place, Task  # noqa: E402 — the path comes first


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "device": device,
        "gpu": gpu,
    }


def run_one(task: Task, place: Place) -> None:
    """Run one task in this process and print its document."""
    # Where torch has no fast path it may choose another algorithm from run to run; the judge wants the plain one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    print(json.dumps({"machine": machine(place.device), **task.run(place)}))


def main() -> int:
    """Run what has not been run, within the time limit; 0 when every task succeeded, 1 when one failed, 3 when some
    are left for the next call.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loratools-gpu")
    parser.add_argument("--architectures", nargs="+", choices=tuple(LEAST), default=list(LEAST))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--keep", action="store_true", help="keep what was made")
    parser.add_argument("--only", help="one task, in this process")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    place = Place(given.out.resolve(), given.work.resolve(), given.size, given.device)
    if given.only:
        run_one(next(task for task in TASKS if task.name == given.only), place)
        return 0
    tasks = [task for task in TASKS if task.architecture in given.architectures and task.dtype in ("", *given.dtypes)]
    kept = place.out / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    ends = time.monotonic() + given.seconds
    for task in tasks:
        if not to_do(task, tasks, place, results):
            continue
        remains = ends - time.monotonic()
        if remains < (task.least if place.size == "full" else 5):
            print(f"{task.name}: left for the next call", flush=True)
            continue
        results[task.name] = in_child(task, place, remains)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1) + "\n")
        part.replace(kept)
        print(
            f"{task.name}: {results[task.name].get('error') or results[task.name].get('verdict', 'done')}", flush=True
        )
        if not given.keep and all(is_done(other, results) for other in of(task.architecture, tasks)):
            shutil.rmtree(place.folder(task.architecture))
    if any("error" in result for result in results.values()):
        return 1
    return 0 if all(task.name in results for task in tasks) else 3


def of(architecture: str, tasks: Sequence[Task]) -> list[Task]:
    """The tasks about one architecture."""
    return [task for task in tasks if task.architecture == architecture]


def is_done(task: Task, results: dict[str, Any]) -> bool:
    """Whether its figures are there."""
    return "error" not in results.get(task.name, {"error": ""})


def to_do(task: Task, tasks: Sequence[Task], place: Place, results: dict[str, Any]) -> bool:
    """Whether it has not been done; what is gone is made again for what is still to be done with it."""
    waiting = {other.verb for other in of(task.architecture, tasks) if not is_done(other, results)}
    if not is_done(task, results):
        return True
    if task.verb == "merge":
        return "extract" in waiting and not place.merged(task.architecture).exists()
    return task.verb == "make" and bool(waiting) and not place.lora(task.architecture).exists()


def in_child(task: Task, place: Place, seconds: float) -> dict[str, Any]:
    """The document of a task that a process of its own made, or what went wrong with it."""
    command = [
        sys.executable, __file__, str(place.out), "--only", task.name,
        "--size", place.size, "--device", place.device, "--work", str(place.work),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {seconds:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


if __name__ == "__main__":
    sys.exit(main())
