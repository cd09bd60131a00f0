"""AdaLoRA and OFT as PEFT saves them: who holds them, and what they are as plain LoRA, judged by PEFT as it loads."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from loratools.adapters.kind import delta_of
from loratools.errors import NotRepresentable
from loratools.formats.registry import FORMATS
from loratools.operations.compare import compare
from loratools.operations.convert import convert
from loratools.operations.lora import open_lora
from loratools.pipelines.synthetic import make_pipeline

LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
)
TUNERS = ("adalora", "adalora-pruned", "oft", "oft-constrained", "oft-shared")
TOLERANCE = {name: 1e-5 if name.startswith("oft") else 1e-6 for name in TUNERS}


def config(name):
    """PEFT's own configuration of a tuner."""
    from peft import AdaLoraConfig, OFTConfig

    if name.startswith("adalora"):
        return AdaLoraConfig(
            init_r=6, target_r=3, lora_alpha=5, total_step=10, tinit=1, tfinal=1, target_modules=list(LAYERS)
        )
    how = {
        "oft": {},
        "oft-constrained": {"coft": True, "eps": 1e-3, "use_cayley_neumann": False},
        "oft-shared": {"block_share": True},
    }[name]
    return OFTConfig(r=0, oft_block_size=8, target_modules=list(LAYERS), **how)


def randomised(model, name):
    """Seeded parameters; in a pruned AdaLoRA some singular values are masked as its allocator does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key or "oft_" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name == "adalora-pruned" and "lora_E" in key:
                parameter[1::2] = 0
    return model


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.set_num_threads(1)
    return make_pipeline("sd1", tmp_path_factory.mktemp("base") / "sd1")


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    """name → (folder that PEFT wrote, path → what the layer of a model that PEFT loaded it into adds to a probe)."""
    from diffusers import UNet2DConditionModel
    from peft import PeftModel, get_peft_model

    made = {}

    def one(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("peft") / name
            unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet", local_files_only=True)
            randomised(get_peft_model(unet, config(name)), name).save_pretrained(str(folder))
            fresh = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet", local_files_only=True)
            loaded = PeftModel.from_pretrained(fresh, str(folder)).eval().double()
            made[name] = folder, {path: added(loaded.get_base_model().get_submodule(path)) for path in LAYERS}
        return made[name]

    return one


def added(layer):
    """The change of a linear layer's weight: what its forward pass adds to the unit vectors."""
    base = layer.get_base_layer()
    units = torch.eye(base.in_features, dtype=torch.float64)
    with torch.no_grad():
        return (layer(units) - base(units)).T


def assert_deltas(reference, truth, tolerance):
    found = {
        item.target.paths[0]: delta_of(item, dtype="float64") for item in open_lora(reference, arch="sd1").adapters
    }
    assert found.keys() == truth.keys()
    for path, delta in truth.items():
        assert delta.norm() > 0
        assert (found[path].reshape(delta.shape) - delta).norm() <= tolerance * delta.norm(), path


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.id)
@pytest.mark.parametrize("name", TUNERS)
def test_no_format_says_it_so_each_names_the_layer_and_what_to_do(saved, name, form):
    folder, _ = saved(name)
    with pytest.raises(NotRepresentable) as refusal:
        convert(folder, to=form.id, arch="sd1")
    assert any(path in refusal.value.message for path in LAYERS)
    assert (refusal.value.key, bool(refusal.value.hint)) != (None, False)


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if form.id in ("hcp", "kohya", "peft")], ids=lambda form: form.id
)
@pytest.mark.parametrize("name", TUNERS)
def test_as_plain_lora_it_makes_the_change_that_peft_makes(saved, pipeline, tmp_path, name, form):
    folder, truth = saved(name)
    out = tmp_path / ("out" if form.folder else "out.safetensors")
    base = None if name.startswith("adalora") else pipeline
    convert(folder, to=form.id, to_kind="lora", base=base, arch="sd1", error=1e-7).save(out)
    assert_deltas(out, truth, TOLERANCE[name])


@pytest.mark.parametrize("name", TUNERS)
def test_compared_over_the_base_it_is_its_plain_lora(saved, pipeline, tmp_path, name):
    folder, _ = saved(name)
    out = tmp_path / "out.safetensors"
    base = None if name.startswith("adalora") else pipeline
    convert(folder, to="kohya", to_kind="lora", base=base, arch="sd1", error=1e-7).save(out)
    assert compare(folder, out, arch="sd1", base=pipeline, tolerance=1e-6).equal
