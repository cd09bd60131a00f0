"""A batch on a Ray cluster of two actors, whose actors and driver are killed, ends as one that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loratools as lt
from tests.operations.making import KEY, MODULES, QUERY, file
from tests.reliability.invariants import leftovers

COUNT, BROKEN = 400, 7
ACTOR_KILLS, DRIVER_KILLS = 3, 1
LAYERS = {stem: MODULES[stem] for stem in (QUERY, KEY)}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "in"
    folder.mkdir()
    for number in range(COUNT):
        file(folder / f"{number:03d}.safetensors", seed=number, rank=1, modules=LAYERS)
    (folder / f"{BROKEN:03d}.safetensors").write_bytes(b"no header")
    return folder


def below(parent):
    """The processes that a process started, and those that they started."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [parent]
    for process in found:
        found += [child for child, its in parents.items() if its == process]
    return found[1:]


def actors(driver):
    found = []
    for process in below(driver):
        try:
            if b"ray::_Worker" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


def answers(rows):
    held = [json.loads(line) for line in rows.read_text().splitlines()]
    return [(row["number"], row["state"], row["code"], row["output_sha256"]) for row in held]


def test_kills_change_nothing_on_a_cluster(inputs, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    calm = lt.Batch(
        verb="convert", manifest=inputs, options=["--to", "diffusers"],
        output=str(tmp_path / "calm" / "{stem}.safetensors"),
        state=tmp_path / "calm.sqlite", results=tmp_path / "calm.jsonl", workers=2,
    ).run()  # fmt: skip
    assert (calm.done, calm.failed) == (COUNT - 1, 1)
    out = tmp_path / "out"
    words = ["batch", "convert", inputs, "-o", f"{out}/{{stem}}.safetensors", "--to", "diffusers", "--engine", "ray"]
    words += ["--workers", "2", "--state", tmp_path / "ray.sqlite", "--results", tmp_path / "ray.jsonl", "--json", "-q"]
    chance, killed, drivers = random.Random(0), 0, 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "loratools", *map(str, words)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        while process.poll() is None and (killed < ACTOR_KILLS or drivers < DRIVER_KILLS):
            found = actors(process.pid)
            if found and killed < ACTOR_KILLS and not (killed and drivers < DRIVER_KILLS):
                time.sleep(chance.uniform(0, 1))
                os.kill(chance.choice(found), signal.SIGKILL)
                killed += 1
            elif killed and drivers < DRIVER_KILLS and out.exists() and len(list(out.iterdir())) > COUNT // 10:
                process.kill()
                drivers += 1
            time.sleep(0.05)
        told = process.communicate()[0]
        if process.returncode in (0, 1):
            break
    assert (killed, drivers) == (ACTOR_KILLS, DRIVER_KILLS)
    summary = json.loads(told)
    assert (summary["done"], summary["failed"], summary["codes"]) == (COUNT - 1, 1, {"malformed-file": 1})
    assert answers(tmp_path / "ray.jsonl") == answers(tmp_path / "calm.jsonl")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "calm").iterdir()
    }
    assert leftovers(tmp_path) == []
