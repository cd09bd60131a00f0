"""Conversions that are stopped from outside: a process that says when it is ready, and what it may leave behind."""

import random
import shutil
import signal
import subprocess
import sys
import time

from fixtures.broken.make import tensor, whole
from tests.reliability.invariants import contents, leftovers

# Everything that a conversion imports is there before it says so: what follows is the work alone.
_STORY = """
import resource, sys
import loratools.operations.convert, loratools.cli.convert, loratools.cli.progress
from loratools.cli.main import main
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
main(sys.argv[2:])
"""
LAYERS = 24


def source(path, *, rank=64):
    """An adapter of some megabytes: many small runs that are gathered and large ones that the kernel copies."""
    tensors = {}
    for number in range(LAYERS):
        block, layer = divmod(number, 4)
        block, side = block % 2, ("q", "k", "v", "out_0")[layer]
        attention = f"lora_unet_down_blocks_0_attentions_{block}_transformer_blocks_0_attn1_to_{side}"
        tensors[f"{attention}.lora_down.weight"] = tensor("F16", rank, 320, fill=bytes([number + 1, 60]))
        tensors[f"{attention}.lora_up.weight"] = tensor("F16", 320, rank, fill=bytes([number + 1, 61]))
        tensors[f"{attention}.alpha"] = tensor("F16", fill=b"\0\x3c")
    for number in range(12):
        mlp = f"lora_te_text_model_encoder_layers_{number}_mlp_fc1"
        tensors[f"{mlp}.lora_down.weight"] = tensor("F16", rank, 768, fill=bytes([number + 1, 62]))
        tensors[f"{mlp}.lora_up.weight"] = tensor("F16", 3072, rank, fill=bytes([number + 1, 63]))
        tensors[f"{mlp}.alpha"] = tensor("F16", fill=b"\0\x3c")
    path.write_bytes(whole(tensors, {"ss_base_model_version": "sd_v1"}))
    return path


def converting(inside, out, to, *, limit=0):
    """The process, once it is ready to work; no file that it writes may grow past `limit` bytes (0: any may)."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STORY, str(limit), "convert", str(inside), str(out), "--to", to, "--overwrite"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


class Stage:
    """A folder with an input, and an old and a new output to tell apart."""

    def __init__(self, folder, to):
        self.folder, self.to = folder, to
        self.inside = source(folder / "in.safetensors")
        self.out = folder / ("out" if to == "peft" else "out.safetensors")
        process = converting(self.inside, self.out, to)
        started = time.perf_counter()
        done = process.communicate(timeout=60)
        self.seconds = time.perf_counter() - started
        assert process.returncode == 0, done
        self.new = contents(folder)
        parts = [path for path in (self.out, *self.out.rglob("*")) if path.is_file()]
        self.largest = max(path.stat().st_size for path in parts)
        self.restore()
        self.old = contents(folder)

    def run(self, **how):
        process = converting(self.inside, self.out, self.to, **how)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def restore(self):
        """Puts the old output in the place of the new one."""
        if self.to == "peft":
            shutil.rmtree(self.out)
            self.out.mkdir()
            (self.out / "adapter_model.safetensors").write_bytes(b"the old output")
        else:
            self.out.write_bytes(b"the old output")

    def stop(self, number, seed):
        """Send a signal at a random moment; gives the exit code, the state ("old", "new") and the temporaries left.

        Raises AssertionError where the output is neither, the input changed, or more stands there than may.
        """
        rng = random.Random(seed)
        process = converting(self.inside, self.out, self.to)
        time.sleep(rng.uniform(0.0 if number == signal.SIGKILL else 0.01, self.seconds))
        process.send_signal(number)
        sent = time.perf_counter()
        _, err = process.communicate(timeout=60)
        waited = time.perf_counter() - sent
        left = leftovers(self.folder)
        found = {name: what for name, what in contents(self.folder).items() if ".loratools-tmp" not in name}
        assert found in (self.old, self.new), (seed, set(found) ^ set(self.old))
        state = "old" if found == self.old else "new"
        for name in {name.split("/")[0] for name in left}:
            self._remove(name)
        if state == "new":
            self.restore()
        return process.returncode, state, left, waited, err

    def _remove(self, name):
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
