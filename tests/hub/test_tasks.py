"""What cards say that a model makes, held to the fields of diffusers' own results."""

from dataclasses import fields

import pytest
from diffusers.pipelines.cosmos.pipeline_output import CosmosImagePipelineOutput, CosmosPipelineOutput
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.pipelines.latte.pipeline_latte import LattePipelineOutput
from diffusers.pipelines.ltx.pipeline_output import LTXPipelineOutput
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from diffusers.pipelines.sana.pipeline_output import SanaPipelineOutput
from diffusers.pipelines.sana_video.pipeline_output import SanaVideoPipelineOutput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

import loratools as lt
from loratools.architectures.registry import ARCHITECTURES
from loratools.hub.tasks import SEVERAL, TASKS, task_of
from loratools.pipelines.synthetic import make_pipeline

RESULTS = {
    "ace-step": (AudioPipelineOutput, "text-to-audio"),
    "flux1": (FluxPipelineOutput, "text-to-image"),
    "latte": (LattePipelineOutput, "text-to-video"),
    "ltx-video": (LTXPipelineOutput, "text-to-video"),
    "sana": (SanaPipelineOutput, "text-to-image"),
    "sana-video": (SanaVideoPipelineOutput, "text-to-video"),
    "sd1": (StableDiffusionPipelineOutput, "text-to-image"),
    "wan2.1": (WanPipelineOutput, "text-to-video"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_task_names_what_the_pipelines_result_holds(name):
    made, tag = RESULTS[name]
    task = task_of([name])
    assert (task.tag, task.results in {item.name for item in fields(made)}) == (tag, True)


def test_what_may_be_either_is_not_told_and_every_row_is_of_some_architecture():
    assert task_of(["wan2.1", "wan2.2"]).tag == "text-to-video"
    assert task_of(["flux1", "hunyuan-video"]) is task_of(["cosmos"]) is task_of([]) is None
    assert {item.name for item in fields(CosmosImagePipelineOutput)} != {
        item.name for item in fields(CosmosPipelineOutput)
    }
    known = [item.id for item in ARCHITECTURES] + ["llm-qwen2"]
    assert set(SEVERAL) <= set(known)
    assert [begin for task in TASKS for begin in task.ids if not any(name.startswith(begin) for name in known)] == []


@pytest.mark.parametrize(("name", "line"), [("sd1", ".images[0]"), ("wan2.1", ".frames[0]")])
def test_the_card_of_a_rebuilt_pipeline_says_what_it_makes(name, line, tmp_path):
    lt.rebuild(make_pipeline(name, tmp_path / "base"), [], tmp_path / "out", arch=name, check=False)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f'pipeline_tag: "{RESULTS[name][1]}"' in text
    assert text.count(line) == 1
