"""An interrupt is heard at once, also where one layer is one piece of arithmetic of many seconds."""

import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from tests.reliability.invariants import contents
from tests.reliability.victims import started

BIG = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
ROWS, COLUMNS = 1280, 5120
HEARD = 2.0  # a busy machine takes its time to end a process


def model(path, change=0.0):
    """A Stable Diffusion 1 of one layer."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(ROWS, COLUMNS, generator=generator)
    weight += change * torch.randn(ROWS, COLUMNS, generator=generator)
    save_file({"model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight": weight}, path)
    return path


def extracted(folder):
    """A decomposition in float64 of the whole layer: the error asked for leaves nothing else."""
    pair = model(folder / "base.safetensors"), model(folder / "tuned.safetensors", 0.01)
    return ["extract", *pair, "-o", folder / "out.safetensors", "--error", "5e-7", "--dtype", "float32", "--force"]


def merged(folder):
    """A rotation of all rows at once: a system of equations that is solved in float64."""
    base, adapter = model(folder / "base.safetensors"), folder / "in.safetensors"
    blocks = 0.01 * torch.randn(1, ROWS, ROWS, generator=torch.Generator().manual_seed(1))
    stem = f"lora_unet_{BIG.replace('.', '_')}"
    save_file({f"{stem}.oft_blocks": blocks, f"{stem}.alpha": torch.tensor(0.0)}, adapter)
    return ["merge", base, adapter, "-o", folder / "out.safetensors"]


def converted(folder):
    """The product of two such matrices, element by element, cut to a rank."""
    source, generator = folder / "in.safetensors", torch.Generator().manual_seed(1)
    shapes = {"w1_a": (ROWS, 64), "w1_b": (64, COLUMNS), "w2_a": (ROWS, 64), "w2_b": (64, COLUMNS)}
    stem = f"lora_unet_{BIG.replace('.', '_')}"
    tensors = {f"{stem}.hada_{role}": torch.randn(shape, generator=generator) for role, shape in shapes.items()}
    save_file({**tensors, f"{stem}.alpha": torch.tensor(64.0)}, source)
    return ["convert", source, folder / "out.safetensors", "--to", "kohya", "--to-kind", "lora", "--error", "5e-7",
            "--arch", "sd1"]  # fmt: skip


CASES = {
    "extract": (extracted, 1.0, 1),
    "extract on two threads": (extracted, 1.0, 2),
    "merge": (merged, 0.4, 1),
    "convert": (converted, 1.0, 1),
}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("case", CASES)
def test_arithmetic_of_many_seconds_does_not_keep_an_interrupt_waiting(tmp_path, case, number, code):
    make, soon, threads = CASES[case]
    arguments = [*make(tmp_path), "--threads", str(threads)]
    before = contents(tmp_path)
    victim = started(arguments)
    time.sleep(soon)
    victim.send(number)
    sent = time.perf_counter()
    done = victim.ended()
    assert time.perf_counter() - sent < HEARD
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert "nothing half-written was left behind" in done.err
    assert contents(tmp_path) == before
