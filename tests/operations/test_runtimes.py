"""convert --for: the runtime's own row picks format, alpha policy and components; what it cannot load is refused."""

import json
from fractions import Fraction

import pytest
import torch

import loratools as lt
from loratools.errors import NotRepresentable, UsageError
from tests.files import save

LAYERS = "base_model.model.model.layers"


def language_model(folder, *, ranks=(4, 4), alphas=(8, 8), extra=None, **config):
    """A PEFT folder over two projections of two layers of a language model."""
    folder.mkdir()
    held, patterns = {}, {"rank_pattern": {}, "alpha_pattern": {}}
    for at, (rank, alpha) in enumerate(zip(ranks, alphas, strict=True)):
        for name in ("q_proj", "v_proj"):
            held[f"{LAYERS}.{at}.self_attn.{name}.lora_A.weight"] = torch.randn(rank, 64)
            held[f"{LAYERS}.{at}.self_attn.{name}.lora_B.weight"] = torch.randn(64, rank)
        if at:
            patterns = {
                "rank_pattern": {f"layers.{at}.self_attn.{name}": rank for name in ("q_proj", "v_proj")},
                "alpha_pattern": {f"layers.{at}.self_attn.{name}": alpha for name in ("q_proj", "v_proj")},
            }
    save({**held, **(extra or {})}, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "r": ranks[0], "lora_alpha": alphas[0], "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **patterns, **config}))
    return folder


@pytest.mark.parametrize(
    ("runtime", "form"),
    [("diffusers", "diffusers"), ("peft", "peft"), ("comfyui", "kohya"), ("a1111", "kohya"), ("kohya", "kohya")],
)
def test_a_runtime_picks_its_format(sd1, tmp_path, runtime, form):
    out = tmp_path / ("out" if form == "peft" else "out.safetensors")
    result = lt.convert(sd1, runtime=runtime).save(out)
    assert result.format == form
    share = lt.inspect(out).to_dict()["loaders"][runtime]
    assert (share["loaded"], share["reasons"]) == (share["of"], [])


def mixed(folder):
    """A kohya file of SD1 whose attention is LoRA and whose feed-forward is LyCORIS' (IA)³; the keys of the latter."""
    start = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
    held = {
        f"{start}attn1_to_q.lora_down.weight": torch.randn(2, 320),
        f"{start}attn1_to_q.lora_up.weight": torch.randn(320, 2),
        f"{start}attn2_to_k.lora_down.weight": torch.randn(2, 768),
        f"{start}attn2_to_k.lora_up.weight": torch.randn(320, 2),
        f"{start}ff_net_2.weight": torch.randn(1280),
        f"{start}ff_net_2.on_input": torch.tensor(True),
        f"{start}ff_net_0_proj.weight": torch.randn(2560, 1),
        f"{start}ff_net_0_proj.on_input": torch.tensor(False),
    }
    return save(held, folder / "mixed.safetensors"), {key for key in held if "_ff_" in key}


def test_what_the_runtime_will_lose_of_the_output_is_warned_of_and_listed(inside, sd1, tmp_path):
    source, lost = mixed(tmp_path)
    result = lt.convert(source, runtime="comfyui").save(tmp_path / "out.safetensors")
    assert result.warnings == (
        "comfyui will not load 2 of 4 adapters as they are: left out: none of its kinds of patches",
    )
    done = inside("convert", source, tmp_path / "again.safetensors", "--for", "comfyui", "--json")
    document = json.loads(done.stdout)["for"]
    assert (document["runtime"], document["of"], document["lost"], document["unknown"]) == ("comfyui", 4, 2, 0)
    assert {row["key"] for row in document["keys"]} == lost
    assert document["reasons"] == [{"reason": document["keys"][0]["reason"], "count": 2}]
    page = inside("convert", source, tmp_path / "page.safetensors", "--for", "comfyui")
    assert "will not load 2 of 4" in page.stdout
    whole = lt.convert(sd1, runtime="comfyui").save(tmp_path / "whole.safetensors")
    assert (whole.losses.lost, whole.losses.keys, whole.warnings) == (0, (), ())
    assert lt.convert(source, to="kohya").save(tmp_path / "to.safetensors").to_dict()["for"] is None


def test_exactly_one_of_format_and_runtime(inside, sd1, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError):
        lt.convert(sd1)
    with pytest.raises(UsageError):
        lt.convert(sd1, to="kohya", runtime="kohya")
    assert inside("convert", sd1, out, "--to", "kohya", "--for", "kohya").returncode == 2
    assert inside("convert", sd1, out, "--for", "kohia").returncode == 2
    done = inside("convert", sd1, out, "--for", "diffusers", "--json")
    assert json.loads(done.stdout)["format"] == "diffusers"


def test_vllm_gets_one_scale_for_all_layers(tmp_path):
    source = language_model(tmp_path / "in", ranks=(4, 2), alphas=(8, 8))
    share = lt.inspect(source).to_dict()["loaders"]["vllm"]
    assert (share["loaded"], share["of"]) == (2, 4)
    out = tmp_path / "out"
    lt.convert(source, runtime="vllm").save(out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert Fraction(config["lora_alpha"]) == config["r"]
    assert lt.inspect(out).to_dict()["loaders"]["vllm"]["loaded"] == 4
    assert lt.compare(source, out).worst < 1e-6


def test_vllm_gets_the_same_bytes_where_one_scale_holds(tmp_path):
    source = language_model(tmp_path / "in")
    result = lt.convert(source, runtime="vllm").save(tmp_path / "out")
    assert result.proof.identical == 4


def test_vllm_takes_no_factors_but_two(tmp_path):
    extra = {
        f"{LAYERS}.{at}.self_attn.{name}.lora_E": torch.ones(4, 1) for at in range(2) for name in ("q_proj", "v_proj")
    }
    source = language_model(tmp_path / "adapter", extra=extra, peft_type="ADALORA", init_r=6, target_r=4)
    share = lt.inspect(source).to_dict()["loaders"]["vllm"]
    assert share["loaded"] == 0
    assert "lora_A" in share["reasons"][0]["reason"]


def test_vllm_is_refused_what_it_does_not_take(sd1, tmp_path):
    saved = {"base_model.model.lm_head.weight": torch.zeros(8, 64)}
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(8, 4),
    }
    dora = {
        f"{LAYERS}.{at}.self_attn.{name}.lora_magnitude_vector": torch.ones(64)
        for at in (0, 1)
        for name in ("q_proj", "v_proj")
    }
    for name, how, why in (
        ("saved", {"extra": saved, "modules_to_save": ["lm_head"]}, "saved whole"),
        ("head", {"extra": head}, "lm_head"),
        ("dora", {"extra": dora, "use_dora": True}, "DoRA"),
    ):
        source = language_model(tmp_path / name, **how)
        assert lt.inspect(source).to_dict()["loaders"]["vllm"]["loaded"] == 0
        with pytest.raises(NotRepresentable, match=why):
            lt.convert(source, runtime="vllm")
    with pytest.raises(NotRepresentable):
        lt.convert(sd1, runtime="vllm")


def test_a_component_that_a_runtime_does_not_load_is_left_out_only_when_asked(tmp_path):
    held = {}
    for stem in (
        "transformer.transformer_blocks.0.attn.to_q",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    ):
        held[f"{stem}.lora_A.weight"] = torch.randn(4, 3072)
        held[f"{stem}.lora_B.weight"] = torch.randn(3072, 4)
    source = save(held, tmp_path / "in.safetensors", {"format": "pt"})
    with pytest.raises(NotRepresentable, match="text_encoder_2"):
        lt.convert(source, runtime="diffusers", arch="flux1")
    pending = lt.convert(source, runtime="diffusers", arch="flux1", allow_lossy=True)
    assert any("text_encoder_2" in line for line in pending.plan.lost)
    result = lt.convert(source, runtime="diffusers", arch="flux1", components=["transformer"])
    assert {item.target.component for item in result.adapters} == {"transformer"}


def test_a_runtime_without_a_loader_is_refused(tmp_path):
    source = language_model(tmp_path / "in")
    for runtime in ("diffusers", "a1111"):
        with pytest.raises(NotRepresentable, match=runtime):
            lt.convert(source, runtime=runtime)
