"""A merge keeps to the memory that its plan names, and says so where it cannot have it."""

import json

import pytest

from fixtures.broken.adapter import tensor, whole
from tests.reliability.invariants import check_printable, command, contents
from tests.reliability.jobs import claiming, two_models
from tests.reliability.victims import room, started

MIB = 1 << 20
LAYERS = 3
SHAPE = (4096, 8192)  # 64 MiB a layer in float16
IN_FLOAT32 = 4 * SHAPE[0] * SHAPE[1]
STEM = "base_model.model.model.layers.0.mlp.down_proj"


def inputs(folder, *, dora=False, shape=SHAPE):
    """A base of zeros that takes no room on the disk, and an adapter for one of its layers."""
    weights = {f"model.layers.{number}.mlp.down_proj.weight": shape for number in range(LAYERS)}
    base = claiming(folder / "base.safetensors", weights)
    held = {f"{STEM}.lora_A.weight": tensor("F16", 4, shape[1], fill=b"\1\x30"),
            f"{STEM}.lora_B.weight": tensor("F16", shape[0], 4, fill=b"\1\x30")}  # fmt: skip
    if dora:
        held[f"{STEM}.lora_magnitude_vector"] = tensor("F16", shape[0], fill=b"\0\x3c")
    adapter = folder / "in.safetensors"
    adapter.write_bytes(whole(held))
    return base, adapter


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_peak_is_the_planned_one(tmp_path, dora):
    arguments = ["merge", *inputs(tmp_path, dora=dora), "-o", tmp_path / "out.safetensors"]
    planned = json.loads(command(*arguments, "--dry-run", "--json").out)["peak_memory"]
    done = started(arguments).ended()
    assert done.code == 0, done
    assert done.peak <= planned
    if not dora:
        assert done.peak <= IN_FLOAT32 + 350 * MIB


def limited(tmp_path, arguments, more, codes):
    before = contents(tmp_path)
    done = started([*arguments, "-o", tmp_path / "out.safetensors", "--quiet"], RLIMIT_AS=room() + more * MIB).ended()
    assert done.code in codes, done
    if done.code:
        assert done.err.startswith("error: "), done
        assert "memory" in done.err
        assert "Traceback" not in done.err
        check_printable(done.err)
        assert contents(tmp_path) == before
    (tmp_path / "out.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_that_cannot_be_had_ends_in_code_5_and_leaves_nothing(tmp_path, threads):
    arguments = ["merge", *inputs(tmp_path, dora=True), "--threads", threads]
    for more in (30, 60, 120, 250, 500):
        limited(tmp_path, arguments, more, (5,))


@pytest.mark.parametrize("verb", ["merge", "extract"])
def test_little_memory_is_enough_or_told(tmp_path, verb):
    models = inputs(tmp_path, shape=(512, 8192)) if verb == "merge" else two_models(tmp_path, small=True)
    for more in (25, 40, 80, 160, 400):
        limited(tmp_path, [verb, *models], more, (0, 5))
