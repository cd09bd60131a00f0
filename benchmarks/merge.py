"""merge at real size against its limit and its peers, side by side: `python benchmarks/merge.py WORK sd1|sdxl [RUNS]`.

The limit ("floor") is a copy inside the kernel of the base's bytes, an fsync, and one SHA-256 of the copy. Peers:
diffusers' load + fuse + save and lycoris-lora's merge + diffusers' save (SD1.5 only: for SDXL they need more memory
than most machines have). sd-scripts' merge_lora.py takes part where SD_SCRIPTS names its folder and SD_SCRIPTS_PYTHON a
Python that has what it imports (a `:` and more folders for its path may follow the first). Every run is a process of
its own; wall and CPU seconds and the largest resident set are medians over runs taken in turn (A B A B …). WORK is made
by benchmarks/bases.py where it is empty.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FLOOR = """
import hashlib, os, sys
source, target = sys.argv[1:]
a, b = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
size, done = os.fstat(a).st_size, 0
while done < size:
    done += os.copy_file_range(a, b, size - done, done, done)
os.fsync(b)
digest, at = hashlib.sha256(), 0
while part := os.pread(b, 1 << 20, at):
    digest.update(part)
    at += len(part)
"""
TORCH = "import torch"
DIFFUSERS = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import torch, diffusers
pipe, lora, out = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(pipe, torch_dtype=torch.float16)
pipeline.load_lora_weights(lora)
names = [name for name in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, name)]
pipeline.fuse_lora(components=names, lora_scale=0.8)
pipeline.unload_lora_weights()
pipeline.save_pretrained(out)
"""

LYCORIS = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import torch, diffusers
from lycoris.kohya import LycorisNetworkKohya, create_network_from_weights
from torch import nn

class Nested(nn.Module):  # transformers 5 has no text_model level, files have it
    def __init__(self, text_model):
        super().__init__()
        self.text_model = text_model

pipe, lora, out = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(pipe, torch_dtype=torch.float16)
text = Nested(pipeline.text_encoder)
LycorisNetworkKohya.apply_preset({
    "unet_target_module": ["Transformer2DModel"], "unet_target_name": [],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"], "text_encoder_target_name": [],
})
network, weights = create_network_from_weights(0.8, lora, None, text, pipeline.unet, for_inference=True)
if len(network.loras) < 264:
    raise SystemExit(f"only {len(network.loras)} layers were found")
network.merge_to(text, pipeline.unet, weights, torch.float16, "cpu")
pipeline.save_pretrained(out)
"""


def sd_scripts(single: Path, lora: Path, out: Path) -> list[str]:
    """sd-scripts' own merge, in float32, saved as float16."""
    places = os.environ["SD_SCRIPTS"]
    folder = places.partition(":")[0]
    python = os.environ.get("SD_SCRIPTS_PYTHON", sys.executable)
    words = {"sd_model": single, "models": lora, "ratios": 0.8, "precision": "float", "save_precision": "fp16"}
    return [
        *("env", f"PYTHONPATH={places}:{folder}/networks", "HF_HUB_OFFLINE=1", python),
        f"{folder}/networks/merge_lora.py",
        *(str(word) for name, value in {**words, "save_to": out}.items() for word in (f"--{name}", value)),
    ]


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and the peak resident set (MB) of one process."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    surroundings["PYTHONPATH"] = str(ROOT)
    before = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=surroundings)
    errors = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - before
    if status:
        raise RuntimeError(f"{command[:4]} ended with {status}: {errors.decode()[-800:]}")
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1000}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every figure."""
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def main() -> None:
    """Measure, print, and keep the results."""
    work, name = Path(sys.argv[1]), sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    rank = int(sys.argv[4]) if len(sys.argv) > 4 else 32
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/bases.py"), str(work), name, str(rank)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    single, lora, pipe = work / "single.safetensors", work / f"lora{rank}.safetensors", work / "pipeline"
    ours = [
        sys.executable,
        "-m",
        "loratools",
        "merge",
        str(single),
        f"{lora}=0.8",
        "-o",
        str(work / "out.safetensors"),
        "--overwrite",
        "-q",
    ]
    folder = [
        sys.executable,
        "-m",
        "loratools",
        "merge",
        str(pipe),
        f"{lora}=0.8",
        "-o",
        str(work / "out"),
        "--overwrite",
        "-q",
    ]
    commands = {
        "floor": [sys.executable, "-c", FLOOR, str(single), str(work / "copy.safetensors")],
        "import torch": [sys.executable, "-c", TORCH],
        "merge (single file)": ours,
        "merge (folder)": folder,
    }
    if name == "sd1":
        peers = {"diffusers fuse + save (folder)": DIFFUSERS, "lycoris merge + save (folder)": LYCORIS}
        commands |= {
            label: [sys.executable, "-c", code, str(pipe), str(lora), str(work / "fused")]
            for label, code in peers.items()
        }
    if "SD_SCRIPTS" in os.environ and name == "sd1":
        commands["sd-scripts merge (single file)"] = sd_scripts(single, lora, work / "sd-scripts.safetensors")
    found: dict[str, list[dict[str, float]]] = {label: [] for label in commands}
    for turn in range(rounds + 1):
        for label, command in commands.items():
            run = measure(command)
            if turn:
                found[label].append(run)
    table = {label: medians(runs) for label, runs in found.items()}
    limit = 2 * table["floor"]["wall"] + table["import torch"]["wall"]
    result = {
        "base": name,
        "bytes": single.stat().st_size,
        "rank": rank,
        "runs": rounds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "medians": table,
        "bar": {
            "2 x floor + import torch": round(limit, 2),
            "merge (single file)": table["merge (single file)"]["wall"],
        },
    }
    for label, theirs in table.items():
        kind = "merge (folder)" if "save (folder)" in label else "merge (single file)"
        if "save (folder)" in label or "sd-scripts" in label:
            result[f"{label} / {kind}"] = {key: round(value / table[kind][key], 2) for key, value in theirs.items()}
    text = json.dumps(result, indent=2)
    print(text)
    out = ROOT / "benchmarks/results" / f"merge-{name}-r{rank}.json"
    out.write_text(text + "\n")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
