"""Every check that wants a GPU, as one resumable run: `python benchmarks/gpu.py OUT [--size tiny] [--device cpu]`.

Real-size Stable Diffusion 1.5 and SDXL pipelines with random weights are made, validated in bfloat16 and float16 (20
steps at their native resolution, all routes, negative controls), merged and extracted at rank 64 on the device.
Each task is a process of its own: one that fails or runs out of memory costs that task alone. OUT/results.json is
written after every task; a task that stands there is not run again, so a run that its time limit cut short goes on
when it is called again. Pictures in OUT are kept within 4 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PICTURES = 4 << 20
"""The most bytes of pictures in OUT."""
NATIVE = {"sd1": (512, 512), "sdxl": (1024, 1024)}
DTYPES = {"bf16": "BF16", "fp16": "F16"}
TINY = {"size": (64, 64), "steps": 1, "rank": 8}
FULL = {"steps": 20, "rank": 64}


@dataclass(frozen=True)
class Place:
    """Where a task finds and leaves its files, and how it runs."""

    out: Path
    work: Path
    size: str
    device: str

    @property
    def how(self) -> Mapping[str, Any]:
        """Steps, rank and picture size of this size of pipeline."""
        return TINY if self.size == "tiny" else FULL

    def pipeline(self, architecture: str) -> Path:
        """The folder of a pipeline."""
        return self.work / architecture / "pipeline"

    def lora(self, architecture: str) -> Path:
        """The adapter for a pipeline."""
        return self.work / architecture / "lora.safetensors"

    def merged(self, architecture: str) -> Path:
        """What `merge` made of a pipeline."""
        return self.work / architecture / "merged"


@dataclass(frozen=True)
class Task:
    """One measurement: `least` is the number of seconds below which a full-size one is not begun."""

    name: str
    run: Callable[[Place], dict[str, Any]]
    least: int

    def is_of(self, architectures: Sequence[str], dtypes: Sequence[str]) -> bool:
        """Whether its name has one of the architectures, and no dtype or one of these."""
        _, architecture, *dtype = self.name.split()
        return architecture in architectures and set(dtype) <= set(dtypes)


def peak(device: str) -> int | None:
    """The most bytes that were in use on the device at once, or None on the CPU."""
    if device == "cpu":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated())


def timed(place: Place, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, with its seconds and its peak on the device."""
    begin = time.perf_counter()
    result = work()
    return result, {"seconds": round(time.perf_counter() - begin, 3), "peak_device_bytes": peak(place.device)}


def make(architecture: str) -> Callable[[Place], dict[str, Any]]:
    """A task that makes the pipeline and an adapter for it."""

    def run(place: Place) -> dict[str, Any]:
        import loratools
        from loratools.pipelines.adapters import make_demo_adapter

        folder = place.pipeline(architecture)
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        _, spent = timed(
            place, lambda: loratools.make_pipeline(architecture, folder, size=place.size, device=place.device)
        )
        make_demo_adapter(folder, place.lora(architecture))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return {**spent, "bytes": size, "dtype": "float32"}

    return run


def merge(architecture: str) -> Callable[[Place], dict[str, Any]]:
    """A task that merges on the device and on the CPU and compares the two."""

    def run(place: Place) -> dict[str, Any]:
        import loratools

        base, lora, out = place.pipeline(architecture), place.lora(architecture), place.merged(architecture)
        found: dict[str, Any] = {}
        for device in dict.fromkeys((place.device, "cpu")):
            how = {"device": device, "threads": os.cpu_count() or 1, "overwrite": True}
            _, spent = timed(place, lambda how=how: loratools.merge(base, [(lora, 0.8)], out, **how))  # type: ignore[misc]
            found[device] = {**spent, "weights_sha256": digest(out)}
        found["same_bytes"] = len({made["weights_sha256"] for made in found.values()}) == 1
        return found

    return run


def digest(folder: Path) -> str:
    """The SHA-256 of all weights of a pipeline."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def extract(architecture: str) -> Callable[[Place], dict[str, Any]]:
    """A task that extracts on the device at a fixed rank and says how far the worst layer is from its optimum."""

    def run(place: Place) -> dict[str, Any]:
        import loratools

        base, tuned = place.pipeline(architecture), place.merged(architecture)
        target = place.work / architecture / "extracted.safetensors"
        rank = int(place.how["rank"])

        def work() -> Any:
            pending = loratools.extract(base, tuned, rank=rank, device=place.device)
            return pending.save(target, overwrite=True)

        result, spent = timed(place, work)
        document = result.to_dict()
        return {**spent, "rank": rank, "relative_error": document["error"], "layers": len(document["layers"])}

    return run


def validate(architecture: str, dtype: str) -> Callable[[Place], dict[str, Any]]:
    """A task that validates in a dtype, with the negative controls, and keeps the contact sheet."""

    def run(place: Place) -> dict[str, Any]:
        import loratools

        report = place.work / f"report-{architecture}-{dtype}"
        result, spent = timed(
            place,
            lambda: loratools.validate(
                place.pipeline(architecture),
                [(place.lora(architecture), 0.8)],
                to=["kohya"],
                dtype=DTYPES[dtype],
                device=place.device,
                steps=int(place.how["steps"]),
                size=place.how.get("size", NATIVE[architecture]),
                negative_controls=True,
                report=report,
                overwrite=True,
                work=place.work,
            ),
        )
        keep_picture(report, place.out / f"{architecture}-{dtype}.png", place.out)
        document = result.to_dict()
        chosen = (
            "verdict", "reasons", "judged_in", "effect", "routes", "floors", "scale", "controls", "warnings",
            "versions",
        )  # fmt: skip
        return {**spent, **{key: document[key] for key in chosen}}

    return run


def keep_picture(report: Path, target: Path, out: Path) -> None:
    """Copy the report's contact sheet, made smaller where all pictures would take more than their share."""
    from PIL import Image

    sheet = report / "contact-sheet.png"
    room = PICTURES - sum(path.stat().st_size for path in out.glob("*.png") if path != target)
    share = min(room, PICTURES // (len(NATIVE) * len(DTYPES)))
    image = Image.open(sheet).convert("RGB")
    while True:
        image.save(target, optimize=True)
        if target.stat().st_size <= share:
            return
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)


TASKS = tuple(
    task
    for architecture, least in (("sd1", 20), ("sdxl", 60))
    for task in (
        Task(f"make {architecture}", make(architecture), least),
        Task(f"merge {architecture}", merge(architecture), least),
        Task(f"extract {architecture}", extract(architecture), least),
        *(Task(f"validate {architecture} {dtype}", validate(architecture, dtype), 2 * least) for dtype in DTYPES),
    )
)


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
    parser.add_argument("--architectures", nargs="+", choices=tuple(NATIVE), default=list(NATIVE))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--only", help="one task, in this process")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    place = Place(given.out.resolve(), given.work.resolve(), given.size, given.device)
    if given.only:
        run_one(next(task for task in TASKS if task.name == given.only), place)
        return 0
    tasks = [task for task in TASKS if task.is_of(given.architectures, given.dtypes)]
    kept = place.out / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    ends = time.monotonic() + given.seconds
    for task in tasks:
        made = task.name.startswith("make") and not place.lora(task.name.split()[1]).exists()
        if "error" not in results.get(task.name, {"error": ""}) and not made:
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
    if any("error" in result for result in results.values()):
        return 1
    return 0 if all(task.name in results for task in tasks) else 3


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
