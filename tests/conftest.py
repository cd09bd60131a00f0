"""Fixtures for every area: small adapter files, and the command line as a process."""

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files import RANK, SD1_KOHYA, SD1_PEFT, SDXL_KOHYA, kohya_tensors, save

# Before torch is imported anywhere: two workers with two threads each on two cores only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it puts in the background deaf to Ctrl-C, and every process started from there inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What stands now, thousands of tests and every library, stands to the end: no use in looking through it again."""
    gc.collect()
    gc.freeze()
    # A model is made of thousands of objects that refer to one another, and is worth one look, not a hundred.
    gc.set_threshold(10_000, 10, 10)


REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """A folder: `sd1.safetensors` and `sdxl.safetensors` by kohya's naming, and `peft/`, a PEFT folder for a UNet."""
    import torch

    folder = tmp_path_factory.mktemp("adapters")
    metadata = {"ss_network_dim": "4", "ss_network_alpha": "2.0", "modelspec.title": "a style"}
    save(kohya_tensors(SD1_KOHYA), folder / "sd1.safetensors", {**metadata, "ss_base_model_version": "sd_v1"})
    save(
        kohya_tensors(SDXL_KOHYA), folder / "sdxl.safetensors", {**metadata, "ss_base_model_version": "sdxl_base_v1-0"}
    )
    peft = folder / "peft"
    peft.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for stem, (rows, columns) in SD1_PEFT.items():
        tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
    save(tensors, peft / "adapter_model.safetensors", {"format": "pt"})
    configuration = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["attn1.to_q", "attn2.to_k", "ff.net.0.proj"],
    }
    (peft / "adapter_config.json").write_text(json.dumps(configuration))
    return folder


@pytest.fixture
def sd1(adapters):
    """A kohya file for SD1: UNet and text encoder, rank 4, alpha 2."""
    return adapters / "sd1.safetensors"


@pytest.fixture
def sdxl(adapters):
    """A kohya file for SDXL: UNet and both text encoders, rank 4, alpha 2."""
    return adapters / "sdxl.safetensors"


@pytest.fixture
def peft_folder(adapters):
    """A PEFT folder for SD1's UNet, rank 4, alpha 8."""
    return adapters / "peft"


@pytest.fixture(scope="session")
def run():
    """`python -m loratools ARGUMENTS…` as a process of its own; gives back the finished process, as text."""

    def call(*arguments, env=None, **how):
        how.setdefault("timeout", 120)
        how.setdefault("cwd", REPOSITORY)
        how.setdefault("stdout", subprocess.PIPE)
        how.setdefault("stderr", subprocess.PIPE)
        command = [sys.executable, "-m", "loratools", *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, **(env or {})}, text=True, check=False, **how)

    return call


@pytest.fixture(scope="session")
def inside(run):
    """The same within this process, which has its libraries already: for what a command says and leaves.

    What only a process of its own can have (an environment, streams, limits) makes it one.
    """
    from loratools.cli.main import main

    def call(*arguments, cwd=REPOSITORY, **how):
        if how:
            return run(*arguments, cwd=cwd, **how)
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, end.value.code, out.getvalue(), err.getvalue())

    return call
