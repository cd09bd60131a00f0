"""The long runs of the reliability tests, by hand; the figures are kept in benchmarks/results/abuse.json.

    python -m benchmarks.abuse fuzz --cases 10000 --seed 1     damaged files through the parsers
    python -m benchmarks.abuse kill --cases 500 --seed 1       conversions killed (SIGKILL) at random moments

A run ends with exit code 1 where an invariant was broken, and names the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.reliability.mutations import judge, mutate
from tests.reliability.victims import Stage

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


def kill(cases: int, first: int) -> dict[str, Any]:
    """Conversions to a file and to a folder, in turn, killed at a random moment of their work."""
    states: Counter[str] = Counter()
    broken: dict[str, str] = {}
    leftovers = killed = 0
    with tempfile.TemporaryDirectory() as place:
        stages = []
        for to in ("diffusers", "peft"):
            folder = Path(place) / to
            folder.mkdir()
            stages.append(Stage(folder, to))
        for seed in range(first, first + cases):
            try:
                code, state, left, _, _ = stages[seed % 2].stop(signal.SIGKILL, seed)
            except AssertionError as error:
                broken[str(seed)] = str(error)[:200]
                continue
            states[state] += 1
            killed += code == -signal.SIGKILL
            tops = {name for name in left if name.startswith(".out") and "/" not in name}
            leftovers += bool(tops)
            if len(tops) > 1:
                broken[str(seed)] = f"{len(tops)} temporaries"
    return {"killed": killed, "outputs": dict(states), "recognised_temporaries": leftovers, "broken": broken}


def main() -> None:
    """Run one, print its figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fuzz", "kill"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started = time.perf_counter()
    found = {"fuzz": fuzz, "kill": kill}[given.what](given.cases, given.seed)
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
    RESULTS.write_text(json.dumps({**kept, given.what: figures}, indent=2, sort_keys=True) + "\n")
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
