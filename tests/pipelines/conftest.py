"""Tiny pipelines, made once for each process that runs tests, and adapters made by third parties for them."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from loratools.pipelines.synthetic import make_pipeline
from tests.judges import by_kohya, by_peft

EVERY = {
    "sd1": {"unet": None, "text_encoder": None},
    "sd2": {"unet": None, "text_encoder": None},
    "sdxl": {"unet": None, "text_encoder": None, "text_encoder_2": None},
    "flux1": {"transformer": None, "text_encoder": None},
}
MOST = {"sd1": 90, "sd2": 60, "sdxl": 90, "flux1": None}


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """architecture → the folder of its tiny pipeline."""
    torch.set_num_threads(1)
    made = {}

    def folder(architecture):
        if architecture not in made:
            made[architecture] = make_pipeline(architecture, tmp_path_factory.mktemp("pipelines") / architecture)
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def third_party(pipeline, tmp_path_factory):
    """(container, architecture) → an adapter with mixed ranks and alphas over every component."""
    made = {}

    def truth(container, architecture):
        if (container, architecture) not in made:
            out = tmp_path_factory.mktemp("adapters") / f"{container}_{architecture}"
            how = {"architecture": architecture, "components": EVERY[architecture], "most": MOST[architecture]}
            if container == "kohya":
                made[container, architecture] = by_kohya.make(
                    pipeline(architecture), out.with_suffix(".safetensors"), **how
                )
            else:
                where = out if container == "peft" else out.with_suffix(".safetensors")
                made[container, architecture] = by_peft.make(pipeline(architecture), where, container=container, **how)
        return made[container, architecture]

    return truth


@pytest.fixture
def lora(third_party):
    """A kohya file for the tiny sd1 pipeline."""
    return third_party("kohya", "sd1").path


@pytest.fixture(scope="session")
def document(inside):
    """The words of a command, with `--json` among them, and its exit code → the document that it prints."""

    def printed(*words, code=0, **how):
        done = inside(*words, **how)
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    return printed
