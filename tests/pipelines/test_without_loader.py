"""Pipelines that diffusers loads no adapters into: merged and rebuilt, their weights are those that peft merges."""

import pytest
import torch
from diffusers import HunyuanDiTPipeline, StableCascadePriorPipeline

import loratools as lt
from tests.judges import by_original, by_peft
from tests.judges.fresh import fresh
from tests.judges.merged import deltas_after_merge
from tests.judges.truth import compare, module_path

CLOSE = 1e-5
COMPONENTS = {
    "hunyuan-dit": {"transformer": None},
    "stable-cascade": {"prior": None, "text_encoder": None},
}


def right(folder, merged, truth):
    found = compare(deltas_after_merge(folder, merged).deltas, truth.deltas)
    return (found.missing, found.unexpected, found.beyond(CLOSE)) == ((), (), {})


@torch.no_grad()
def made(pipe):
    """What a pipeline makes of a prompt in two steps: a prior an embedding, the other a picture."""
    pipe.set_progress_bar_config(disable=True)
    small = {"height": 64, "width": 64}
    how = small if isinstance(pipe, StableCascadePriorPipeline) else {**small, "use_resolution_binning": False}
    generator = torch.Generator().manual_seed(1)
    how = {**how, "num_inference_steps": 2, "output_type": "pt"}
    return next(iter(pipe("a lighthouse", generator=generator, **how).values()))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_file_in_the_names_of_its_trainer_is_merged(name, pipeline, tmp_path):
    file = tmp_path / "style.safetensors"
    truth = by_original.make(pipeline(name), file, architecture=name, spelling="kohya", most=12)
    assert right(pipeline(name), lt.merge(pipeline(name), [file], tmp_path / "merged").path, truth)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_rebuilt_pipeline_makes_what_it_makes_with_the_weights_that_peft_merges(name, pipeline, tmp_path):
    truth = by_peft.make(
        pipeline(name), tmp_path / "style.safetensors", architecture=name, components=COMPONENTS[name], most=16
    )
    lt.rebuild(pipeline(name), [truth.path], tmp_path / "rebuilt", arch=name)
    assert right(pipeline(name), tmp_path / "rebuilt", truth)
    live = fresh(pipeline(name))
    assert isinstance(live, (HunyuanDiTPipeline, StableCascadePriorPipeline))
    assert not hasattr(live, "load_lora_weights")
    plain = made(live)
    for (component, path), delta in truth.deltas.items():
        model = getattr(live, component)
        weight = model.get_submodule(module_path(model, path)).weight.data
        weight.copy_(weight.double() + delta)
    wanted, found = made(live), made(fresh(tmp_path / "rebuilt"))
    assert (found - wanted).norm() <= CLOSE * wanted.norm()
    assert (plain - wanted).norm() > 100 * CLOSE * wanted.norm()
