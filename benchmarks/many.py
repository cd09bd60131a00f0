"""Batches of many small adapters: what a run costs beside reading the headers, and what kills do to one.

    python benchmarks/many.py headers [--files 100000]   inspect, against opening and parsing the same headers serially
    python benchmarks/many.py kills [--files 10000]      convert, the driver killed 20 times and workers 50 times,
                                                         against the same run undisturbed; 1 % of the files are broken
    python benchmarks/many.py kills --engine ray         the same on a local Ray cluster of two actors
        [--driver-kills 20] [--worker-kills 50]          fewer kills, for fewer files

Files are written once into --work (kohya, diffusers and PEFT names in turn, four layers each). Kept in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bars import machine

HERE = Path(__file__).resolve().parent
DRIVER_KILLS, WORKER_KILLS = 20, 50
LAYERS = ("attn1.to_q", "attn1.to_k", "attn2.to_v", "ff.net.2")
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0."
SIZES = {"attn1.to_q": (320, 320), "attn1.to_k": (320, 320), "attn2.to_v": (768, 320), "ff.net.2": (1280, 320)}
BROKEN = (b"", b"not a model", (1 << 40).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0[]")


def adapter(number: int) -> bytes:
    """A small adapter under one of three spellings; its values depend on its number alone."""
    style = ("kohya", "diffusers", "peft")[number % 3]
    header: dict[str, object] = {}
    body = b""
    seed = hashlib.sha256(str(number).encode()).digest()

    def put(key: str, shape: list[int], dtype: str, data: bytes) -> None:
        nonlocal body
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data

    for layer in LAYERS:
        columns, rows = SIZES[layer]
        names = {
            "kohya": ("lora_unet_" + (BLOCK + layer).replace(".", "_"), "lora_down.weight", "lora_up.weight"),
            "diffusers": (f"unet.{BLOCK}{layer}", "lora_A.weight", "lora_B.weight"),
            "peft": (f"base_model.model.{BLOCK}{layer}", "lora_A.weight", "lora_B.weight"),
        }[style]
        half = (
            (seed * (2 * columns // len(seed) + 1))[: 2 * columns].replace(b"\x7c", b"\x3c").replace(b"\xfc", b"\x3c")
        )
        put(f"{names[0]}.{names[1]}", [1, columns], "BF16", half)
        put(f"{names[0]}.{names[2]}", [rows, 1], "BF16", (half * (rows // columns + 1))[: 2 * rows])
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def inputs(work: Path, count: int, *, broken: bool) -> Path:
    """A folder of `count` files."""
    folder = work / f"files-{count}{'-broken' if broken else ''}"
    if not folder.exists():
        staged = folder.with_suffix(".tmp")
        staged.mkdir(parents=True)
        for number in range(count):
            place = staged / f"{number // 1000:03d}" / f"{number:06d}.safetensors"
            place.parent.mkdir(exist_ok=True)
            bad = broken and number % 100 == 57
            place.write_bytes(BROKEN[number // 100 % len(BROKEN)] if bad else adapter(number))
        staged.rename(folder)
    return folder


SERIAL = """
import sys, time
from pathlib import Path
from loratools.tensors.safetensors_file import open_safetensors
started = time.process_time()
count = 0
for folder in sorted(Path(sys.argv[1]).iterdir()):
    for file in sorted(folder.iterdir()):
        count += len(open_safetensors(file))
print(time.process_time() - started, count)
"""


def headers(work: Path, count: int) -> dict[str, object]:
    """Files per second, against reading and parsing the same headers in one process; the driver's peak memory."""
    folder = inputs(work, count, broken=False)
    serial = subprocess.run([sys.executable, "-c", SERIAL, folder], capture_output=True, text=True, check=True)
    state = work / "headers.sqlite"
    state.unlink(missing_ok=True)
    command = [sys.executable, "-m", "loratools", "batch", "inspect", folder, "--state", state, "--json", "-q"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = json.loads(process.stdout.read())
    _, _, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    return {
        "files": count,
        "serial_cpu_seconds": round(float(serial.stdout.split()[0]), 2),
        "wall_seconds": round(wall, 2),
        "files_per_second": round(count / wall, 1),
        "driver_peak_mb": round(used.ru_maxrss / 1024, 1),
        "done": found["done"],
        "failed": found["failed"],
        "state_mb": round(state.stat().st_size / 1e6, 1),
    }


def converted(work: Path, folder: Path, name: str, kills: tuple[int, int], engine: str) -> dict[str, object]:
    """One run of `convert` over the folder, with so many (drivers, workers) killed: its answers and its outputs."""
    out, state, rows = work / name, work / f"{name}.sqlite", work / f"{name}.jsonl"
    shutil.rmtree(out, ignore_errors=True)
    for left in (state, rows):
        left.unlink(missing_ok=True)
    command: list[str] = [
        *(sys.executable, "-m", "loratools", "batch", "convert", str(folder), "-o", f"{out}/{{stem}}.safetensors"),
        *("--to", "diffusers", "--state", str(state), "--results", str(rows), "--json", "-q"),
        *(("--engine", "ray", "--workers", "2") if engine == "ray" else ()),
    ]
    most_drivers, most_workers = kills
    pause = (1.0, 3.0) if engine == "ray" else (0.5, 2.5)  # a cluster takes seconds to start
    chance = random.Random(0)  # noqa: S311 (whom to kill is no secret)
    drivers = workers = runs = 0
    started = time.monotonic()
    while True:
        runs += 1
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while process.poll() is None and (drivers < most_drivers or workers < most_workers):
            time.sleep(chance.uniform(*pause))
            if workers < most_workers and (drivers == most_drivers or chance.random() < 0.75):
                workers += kill_a_worker(process.pid, chance)
            elif drivers < most_drivers and process.poll() is None:
                process.kill()
                drivers += 1
        told = process.stdout.read() if process.stdout else ""
        if process.wait() in (0, 1):
            break
    answers = {}
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        answers[row["number"]] = (row["state"], row["code"], row["output_sha256"])
    summary = json.loads(told)
    seconds = round(time.monotonic() - started, 1)
    return {"summary": summary, "answers": answers, "seconds": seconds, "kills": [drivers, workers], "runs": runs}


WORKERS = (b"spawn_main", b"ray::_Worker")
"""How the command lines of workers read."""


def below(parent: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found = [parent]
    for process in found:
        found += [child for child, its in parents.items() if its == process]
    return found[1:]


def kill_a_worker(driver: int, chance: random.Random) -> int:
    """SIGKILL for one of the driver's workers; 1 if there was one."""
    found = []
    for process in below(driver):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if any(word in words for word in WORKERS):
            found.append(process)
    if not found:
        return 0
    try:
        os.kill(chance.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def killed(work: Path, count: int, kills: tuple[int, int], engine: str) -> dict[str, object]:
    """An undisturbed run and one with kills: are the answers and outputs the same?"""
    folder = inputs(work, count, broken=True)
    calm = converted(work, folder, "calm", (0, 0), engine)
    disturbed = converted(work, folder, "disturbed", kills, engine)
    left = [path.name for path in (work / "disturbed").iterdir() if not path.name.endswith(".safetensors")]
    return {
        "files": count,
        "engine": engine,
        "driver_kills": disturbed["kills"][0],
        "worker_kills": disturbed["kills"][1],
        "seconds_undisturbed": calm["seconds"],
        "seconds_disturbed": disturbed["seconds"],
        "failed": disturbed["summary"]["codes"],
        "same_answers_and_outputs": calm["answers"] == disturbed["answers"],
        "left_behind": left,
    }


def main() -> None:
    """Measure, print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("headers", "kills"))
    parser.add_argument("--files", type=int)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the files; what is there is used again")
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    parser.add_argument("--driver-kills", type=int, default=DRIVER_KILLS)
    parser.add_argument("--worker-kills", type=int, default=WORKER_KILLS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "headers":
        found = headers(options.work, options.files or 100_000)
    else:
        kills = (options.driver_kills, options.worker_kills)
        found = killed(options.work, options.files or 10_000, kills, options.engine)
    name = f"{options.what}-ray" if options.engine == "ray" else options.what
    text = json.dumps({"machine": machine(), options.what: found}, indent=2)
    print(text)
    (HERE / "results" / f"many-{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
