"""The figures that README.md quotes: start-up, and conversion by renaming, each beside its floor and its peer.

    python benchmarks/bars.py start-up            --help and inspect against `import torch`
    python benchmarks/bars.py rename              SDXL, 986 modules, rank 32 and 128: kohya → diffusers
    python benchmarks/bars.py                     both

Every round runs all contestants once, in turn (A B C A B C), so that what else the machine does falls on all of them;
medians of the rounds are compared. Wall seconds are taken from outside, CPU seconds and peak memory from wait4.
The floor of a conversion is the kernel's copy of the same bytes, an fsync, and one SHA-256 of what was written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROUNDS = 5

FLOOR = """
import hashlib, os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
left = os.fstat(source).st_size
while left:
    left -= os.copy_file_range(source, target, left)
os.fsync(target)
digest = hashlib.sha256()
os.lseek(target, 0, os.SEEK_SET)
while block := os.read(target, 1 << 20):
    digest.update(block)
print(digest.hexdigest())
"""

PEER = """
import sys
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
tensors, _alphas = StableDiffusionXLPipeline.lora_state_dict(sys.argv[1])
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, sys.argv[2])
"""


@dataclass(frozen=True)
class Sample:
    """One run of one program: seconds by the clock, seconds of CPU (user and system), peak resident kilobytes."""

    wall: float
    cpu: float
    peak_kb: int


@dataclass(frozen=True)
class Contestant:
    """A program under a name; `output` is removed before every run."""

    name: str
    command: list[str]
    output: Path | None = None


def run_once(contestant: Contestant) -> Sample:
    """Run a contestant to its end, with the bytecode of runs before; RuntimeError with its last words if it fails."""
    if contestant.output is not None:
        contestant.output.unlink(missing_ok=True)
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            contestant.command, stdout=subprocess.DEVNULL, stderr=errors, cwd=HERE.parent, env=surroundings
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            message = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{contestant.name} ended with {process.returncode}: {message}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)


def race(contestants: list[Contestant], rounds: int) -> dict[str, list[Sample]]:
    """All contestants in turn, `rounds` times, after one round that does not count (caches, bytecode)."""
    samples: dict[str, list[Sample]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds + 1):
        for contestant in contestants:
            sample = run_once(contestant)
            if number:
                samples[contestant.name].append(sample)
        print(f"  round {number} of {rounds}", file=sys.stderr)
    return samples


def summary(samples: list[Sample]) -> dict[str, object]:
    """Median wall, CPU and peak of the samples, their spread, and every sample."""
    walls = [sample.wall for sample in samples]
    return {
        "runs": len(samples),
        "wall_median": round(statistics.median(walls), 4),
        "wall_min": round(min(walls), 4),
        "wall_max": round(max(walls), 4),
        "cpu_median": round(statistics.median(sample.cpu for sample in samples), 4),
        "peak_mb": round(max(sample.peak_kb for sample in samples) / 1024, 1),
        "samples": [asdict(sample) for sample in samples],
    }


def sdxl_file(path: Path, rank: int) -> Path:
    """A rank-`rank` SDXL file, made by a process of its own: a child's peak memory starts at its parent's."""
    subprocess.run([sys.executable, str(HERE / "sdxl_file.py"), str(path), str(rank)], check=True)
    return path


def start_up(folder: Path, rounds: int) -> tuple[dict[str, object], list[dict[str, object]]]:
    """--help and inspect (SDXL, rank 32) against `import torch`."""
    file = sdxl_file(folder / "sdxl-32.safetensors", 32)
    loratools = [sys.executable, "-m", "loratools"]
    contestants = [
        Contestant("loratools --help", [*loratools, "--help"]),
        Contestant("loratools inspect", [*loratools, "inspect", str(file)]),
        Contestant("loratools inspect --json", [*loratools, "inspect", "--json", str(file)]),
        Contestant("import click, rich", [sys.executable, "-c", "import click, rich.console, rich.table"]),
        Contestant("import torch", [sys.executable, "-c", "import torch"]),
    ]
    rows = {name: summary(samples) for name, samples in race(contestants, rounds).items()}
    torch = float(rows["import torch"]["wall_median"])
    bars = [
        bar("--help, seconds", rows["loratools --help"]["wall_median"], "<=", 0.3),
        bar("inspect, seconds", rows["loratools inspect"]["wall_median"], "<=", 0.4),
        bar("import torch / inspect", torch / float(rows["loratools inspect"]["wall_median"]), ">=", 8),
        bar("inspect, peak MB", rows["loratools inspect"]["peak_mb"], "<=", 60),
    ]
    return {"start-up": rows}, bars


def rename(folder: Path, rounds: int, *, peer: bool) -> tuple[dict[str, object], list[dict[str, object]]]:
    """kohya → diffusers, SDXL rank 32 and 128, against the floor and diffusers' own loader and save."""
    tables: dict[str, object] = {}
    bars: list[dict[str, object]] = []
    for rank in (32, 128):
        source = sdxl_file(folder / f"sdxl-{rank}.safetensors", rank)
        ours, floor, theirs = (folder / f"{name}.safetensors" for name in ("ours", "floor", "theirs"))
        convert = ["convert", str(source), str(ours), "--to", "diffusers", "--json"]
        contestants = [
            Contestant("floor", [sys.executable, "-c", FLOOR, str(source), str(floor)], floor),
            Contestant("loratools convert", [sys.executable, "-m", "loratools", *convert], ours),
            Contestant("loratools --help", [sys.executable, "-m", "loratools", "--help"]),
        ]
        if peer:
            contestants.append(Contestant("diffusers", [sys.executable, "-c", PEER, str(source), str(theirs)], theirs))
        rows = {name: summary(samples) for name, samples in race(contestants, rounds).items()}
        tables[f"rename, SDXL rank {rank}, {source.stat().st_size / 1e6:.0f} MB"] = rows
        start = float(rows["loratools --help"]["wall_median"])
        limit = 1.3 * float(rows["floor"]["wall_median"]) + start
        mine = float(rows["loratools convert"]["wall_median"])
        bars.append(bar(f"rename rank {rank}, seconds (1.3 x floor + start-up)", mine, "<=", limit))
        bars.append(bar(f"rename rank {rank}, peak MB", rows["loratools convert"]["peak_mb"], "<=", 60))
        if peer:
            bars.append(bar(f"diffusers / rename rank {rank}", float(rows["diffusers"]["wall_median"]) / mine, ">=", 8))
        for path in (source, ours, floor, theirs):
            path.unlink(missing_ok=True)
    return tables, bars


def bar(name: str, value: object, sign: str, limit: float) -> dict[str, object]:
    """A figure beside the bar it should reach."""
    number = float(value)
    reached = number <= limit if sign == "<=" else number >= limit
    return {"bar": name, "value": round(number, 3), "sign": sign, "limit": round(limit, 3), "reached": reached}


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", information)
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "safetensors", "click", "rich")},
    }


def main() -> None:
    """Run what was asked for, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["start-up", "rename"], help="start-up, rename")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers out")
    parser.add_argument("--work", type=Path, help="a folder for the files, on the disk to be measured")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    for what in options.what:
        folder = Path(tempfile.mkdtemp(prefix="loratools-bars-", dir=options.work))
        before = machine()
        try:
            if what == "start-up":
                tables, bars = start_up(folder, options.rounds)
            elif what == "rename":
                tables, bars = rename(folder, options.rounds, peer=not options.no_peer)
            else:
                parser.error(f"there is no benchmark {what!r}")
        finally:
            shutil.rmtree(folder)
        now = datetime.now(UTC)
        document = {
            "benchmark": what,
            "date": now.date().isoformat(),
            "machine": before,
            "bars": bars,
            "tables": tables,
        }
        options.results.mkdir(exist_ok=True)
        path = options.results / f"{now.date().isoformat()}-{what}.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        show(document, path)


def show(document: dict[str, object], path: Path) -> None:
    """The figures as a table."""
    for title, rows in document["tables"].items():
        print(f"\n{title}\n{'':28}{'runs':>5}{'wall s':>9}{'min':>9}{'max':>9}{'cpu s':>9}{'peak MB':>9}")
        for name, row in rows.items():
            figures = "".join(f"{row[key]:>9.3f}" for key in ("wall_median", "wall_min", "wall_max", "cpu_median"))
            print(f"{name:28}{row['runs']:>5}{figures}{row['peak_mb']:>9.1f}")
    print()
    for item in document["bars"]:
        mark = "reached" if item["reached"] else "MISSED"
        print(f"{mark:8} {item['bar']}: {item['value']} {item['sign']} {item['limit']}")
    print(f"\nkept in {path}")


if __name__ == "__main__":
    main()
