"""The long runs of the reliability tests, by hand; the figures are kept in benchmarks/results/abuse.json.

    python -m benchmarks.abuse fuzz --cases 10000 --seed 1     damaged files through the parsers
    python -m benchmarks.abuse kill --cases 500 --seed 1       conversions killed (SIGKILL) at random moments
    python -m benchmarks.abuse kill --verb merge --cases 500   the same of another verb (merge, extract)
    python -m benchmarks.abuse disk --place SMALL --cases 50   conversions while the disk fills up and is cleared again

SMALL is an empty folder on a disk of its own, which holds one output but not two of them:
`mount -t tmpfs -o size=9m tmpfs SMALL`.

A run ends with exit code 1 where an invariant was broken, and names the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.reliability.jobs import adapter, jobs
from tests.reliability.mutations import judge, mutate
from tests.reliability.victims import Stage, started

RESULTS = Path(__file__).resolve().parent / "results" / "abuse.json"
SLOWEST = 2.0


def fuzz(cases: int, first: int) -> dict[str, Any]:
    """Mutants with the seeds `first`, `first` + 1, …: every one is parsed, read, or refused."""
    found: Counter[str] = Counter()
    broken: dict[str, str] = {}
    slowest = 0.0
    for seed in range(first, first + cases):
        started = time.process_time()
        try:
            found[judge(mutate(seed))] += 1
        except Exception as error:  # noqa: BLE001 (what escapes is what is looked for)
            broken[str(seed)] = f"{type(error).__name__}: {error}"[:200]
        slowest = max(slowest, time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slow = {"slow": f"{slowest:.2f} s"} if slowest > SLOWEST else {}
    return {"outcomes": dict(found), "slowest_s": round(slowest, 3), "peak_kb": peak, "broken": broken | slow}


def kill(cases: int, first: int, verb: str) -> dict[str, Any]:
    """Commands of one verb, to each of its sorts of output in turn, killed at a random moment of their work."""
    states: Counter[str] = Counter()
    broken: dict[str, str] = {}
    leftovers = killed = 0
    with tempfile.TemporaryDirectory() as place:
        stages = []
        for at, job in enumerate(jobs(verb)):
            folder = Path(place) / str(at)
            folder.mkdir()
            stages.append(Stage(folder, job))
        for seed in range(first, first + cases):
            try:
                done, state, left, _ = stages[seed % len(stages)].stop(signal.SIGKILL, seed)
            except AssertionError as error:
                broken[str(seed)] = str(error)[:200]
                continue
            states[state] += 1
            killed += done.code == -signal.SIGKILL
            tops = {name for name in left if name.startswith(".out") and "/" not in name}
            leftovers += bool(tops)
            if len(tops) > 1:
                broken[str(seed)] = f"{len(tops)} temporaries"
            elif done.code not in (0, -signal.SIGKILL):
                broken[str(seed)] = f"exit {done.code}: {done.err[:160]}"
    return {"killed": killed, "outputs": dict(states), "recognised_temporaries": leftovers, "broken": broken}


def disk(cases: int, first: int, place: Path) -> dict[str, Any]:
    """Conversions over an old output, to a file and to a folder in turn, on a disk that something else fills up."""
    rng, other = random.Random(first), random.Random(first + 1)  # noqa: S311 (seeds, no secrets)
    states, broken, stopped = Counter[str](), dict[str, str](), threading.Event()
    filling = threading.Thread(target=_fill, args=(place / "fill", other, stopped))
    with tempfile.TemporaryDirectory() as elsewhere:
        inside = adapter(Path(elsewhere) / "in.safetensors")
        filling.start()
        try:
            for case in range(cases):
                job = jobs("convert")[case % 2]
                out = job.out(place)
                old = _old(out)
                time.sleep(rng.uniform(0, 0.1))
                done = started(job.arguments((inside,), out)).ended()
                found = [path for path in (out, *out.rglob("*")) if path.is_file()]
                size = sum(path.stat().st_size for path in found)
                state = "new" if size > 0.9 * inside.stat().st_size else "neither"
                if size == len(old) and b"".join(path.read_bytes() for path in found) == old:
                    state = "old"
                states[f"exit {done.code}, {state}"] += 1
                names = {path.name for path in place.iterdir()} - {"fill", "out", "out.safetensors"}
                if names or state == "neither" or (done.code == 0) != (state == "new"):
                    broken[str(case)] = f"exit {done.code}, {state}, left {sorted(names)}"
                shutil.rmtree(out, ignore_errors=True)
                out.unlink(missing_ok=True)
        finally:
            stopped.set()
            filling.join()
    return {"outcomes": dict(states), "broken": broken}


def _old(out: Path) -> bytes:
    """Puts an old output in its place, however often the disk is full."""
    old = b"the old output"
    while True:
        try:
            if out.suffix:
                out.write_bytes(old)
            else:
                out.mkdir(exist_ok=True)
                (out / "adapter_model.safetensors").write_bytes(old)
        except OSError:
            time.sleep(0.01)
        else:
            return old


def _fill(path: Path, rng: random.Random, stopped: threading.Event) -> None:
    while not stopped.is_set():
        try:
            with path.open("wb") as file:
                while not stopped.is_set():
                    file.write(bytes(100 << 10))
                    file.flush()
                    time.sleep(0.0005)
        except OSError:  # full: that is the point
            time.sleep(rng.uniform(0, 0.02))
        path.unlink(missing_ok=True)
        time.sleep(rng.uniform(0, 0.06))


def main() -> None:
    """Run one, print its figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fuzz", "kill", "disk"])
    parser.add_argument("--place", type=Path, help="for disk: an empty folder on a small disk of its own")
    parser.add_argument("--verb", choices=["convert", "merge", "extract"], default="convert", help="for kill")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started = time.perf_counter()
    if given.what == "disk":
        if given.place is None or not given.place.is_mount() or any(given.place.iterdir()):
            parser.error("--place must be an empty mounted disk")
        found = disk(given.cases, given.seed, given.place)
    elif given.what == "kill":
        found = kill(given.cases, given.seed, given.verb)
    else:
        found = fuzz(given.cases, given.seed)
    figures = {
        "cases": given.cases,
        "seed": given.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **found,
    }
    print(json.dumps(figures, indent=2))
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    name = f"kill {given.verb}" if given.what == "kill" and given.verb != "convert" else given.what
    RESULTS.write_text(json.dumps({**kept, name: figures}, indent=2, sort_keys=True) + "\n")
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
