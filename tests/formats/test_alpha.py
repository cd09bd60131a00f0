"""Alpha from every place it is met in: the right scale, its source named, contradictions told, no number guessed."""

import json
import math

import pytest
import torch

import loratools
from loratools.errors import LoratoolsError, MalformedFile, NonFinite
from tests.formats.making import KOHYA, PEFT, Draw, low_rank, write, write_peft

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
RANK = 4


def kohya(alpha, *, metadata=None, folder):
    """One kohya layer of rank 4 with this alpha tensor (None: absent), beside one whose alpha is its rank."""
    draw, tensors = Draw(), {}
    for at, (shape, stored) in enumerate((((320, 320), alpha), ((320, 768), torch.tensor(4.0)))):
        stem = "lora_unet_" + (UNET, OTHER)[at].replace(".", "_")
        tensors |= {stem + KOHYA[role]: tensor for role, tensor in low_rank(shape, RANK, draw).items()}
        if stored is not None:
            tensors[f"{stem}.alpha"] = stored
    return write(tensors, folder / "in.safetensors", metadata)


def peft_tensors(prefix="base_model.model.", *, ranks=(RANK, RANK)):
    draw, tensors = Draw(), {}
    for path, shape, rank in ((UNET, (320, 320), ranks[0]), (OTHER, (320, 768), ranks[1])):
        tensors |= {f"{prefix}{path}{PEFT[role]}": t for role, t in low_rank(shape, rank, draw).items()}
    return tensors


def scales(path):
    """canonical path → (scale, source) as `inspect --modules` has it."""
    rows = loratools.inspect(path, modules=True).to_dict()["modules"]
    return {name: (row["scale"], row["alpha_source"]) for row in rows for name in row["paths"]}


def warnings(path):
    return " | ".join(loratools.inspect(path).document["warnings"])


@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "one"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "int32"])
def test_an_alpha_tensor_of_any_dtype_and_shape_is_a_number(dtype, shape, tmp_path):
    alpha = torch.tensor(2, dtype=getattr(torch, dtype)).reshape(shape)
    path = kohya(alpha, folder=tmp_path)
    assert scales(path) == {UNET: (0.5, "tensor"), OTHER: (1.0, "tensor")}
    assert warnings(path) == ""


def test_an_alpha_is_the_stored_number_exactly(tmp_path):
    stored = torch.tensor(0.1, dtype=torch.float16)
    assert scales(kohya(stored, folder=tmp_path))[UNET] == (stored.item() / RANK, "tensor")


def test_an_absent_alpha_is_the_rank(tmp_path):
    assert scales(kohya(None, folder=tmp_path))[UNET] == (1.0, "absent")


def test_a_zero_alpha_is_no_effect_and_told(tmp_path):
    path = kohya(torch.tensor(0.0), folder=tmp_path)
    assert scales(path)[UNET] == (0.0, "tensor")
    assert "alpha of 0" in warnings(path)


def test_a_negative_alpha_inverts_and_is_told(tmp_path):
    path = kohya(torch.tensor(-4.0), folder=tmp_path)
    assert scales(path)[UNET] == (-1.0, "tensor")
    assert "negative alpha" in warnings(path)


@pytest.mark.parametrize("to", ["diffusers", "peft", "kohya"])
@pytest.mark.parametrize("alpha", [0.0, -4.0, 3.0])
def test_every_scale_survives_conversion(alpha, to, tmp_path):
    path = kohya(torch.tensor(alpha), folder=tmp_path)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    loratools.convert(path, to=to).save(out)
    assert scales(out)[UNET][0] == alpha / RANK


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_an_alpha_that_is_no_finite_number_is_refused(value, verb, tmp_path):
    path = kohya(torch.tensor(value, dtype=torch.float16), folder=tmp_path)
    with pytest.raises(NonFinite) as refusal:
        loratools.inspect(path) if verb == "inspect" else loratools.convert(path, to="diffusers")
    assert refusal.value.exit_code == 7
    assert refusal.value.key == f"lora_unet_{UNET.replace('.', '_')}.alpha"
    assert refusal.value.path == str(path)


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.ones(1, 1), torch.ones(0)])
def test_an_alpha_that_is_no_number_is_malformed(alpha, tmp_path):
    with pytest.raises(MalformedFile) as refusal:
        loratools.convert(kohya(alpha, folder=tmp_path), to="diffusers")
    assert refusal.value.exit_code == 3
    assert refusal.value.key.endswith(".alpha")


def test_a_folded_alpha_has_scale_one(tmp_path):
    path = write(peft_tensors("unet."), tmp_path / "in.safetensors", {"format": "pt"})
    assert scales(path) == {UNET: (1.0, "absent"), OTHER: (1.0, "absent")}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"lora_alpha": 8}, (2, 2)),
        ({"lora_alpha": 2.5}, (0.625, 0.625)),
        ({"lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, (2, 0.5)),
        ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 2}}, (2, 0.5)),
        ({"lora_alpha": 8, "alpha_pattern": {f"^{OTHER}": 2}}, (2, 0.5)),
        ({"lora_alpha": 8, "alpha_pattern": {"^to_k": 2}}, (2, 2)),
        ({"lora_alpha": 8, "alpha_pattern": {r".*attn[12]\.to_[kv]": 2, "to_k": 16}}, (2, 0.5)),
        ({"lora_alpha": 8, "alpha_pattern": {"o_k": 2}}, (2, 2)),
        ({"lora_alpha": 8, "alpha_pattern": {"to_[": 2}}, (2, 2)),
        ({"lora_alpha": 8, "use_rslora": True}, (4, 4)),
        ({"lora_alpha": 3, "use_rslora": True, "alpha_pattern": {"to_k": 1}}, (1.5, 0.5)),
    ],
)
def test_a_configuration_speaks_for_its_modules(config, expected, tmp_path):
    folder = write_peft(peft_tensors(), tmp_path / "in", r=RANK, **{"lora_alpha": None, **config})
    assert scales(folder) == {UNET: (expected[0], "config"), OTHER: (expected[1], "config")}


def test_patterns_match_as_peft_matches_them(tmp_path):
    from peft.utils.other import get_pattern_key

    patterns = {"attn1": 3, "attn1.to_q": 5, "^down_blocks": 7, r"down_blocks\.\d+\..*to_k": 9, "to_q": 11}
    folder = write_peft(peft_tensors(), tmp_path / "in", r=RANK, lora_alpha=1, alpha_pattern=patterns)
    for path, (scale, _) in scales(folder).items():
        assert scale * RANK == patterns.get(get_pattern_key(list(patterns), path), 1)


def test_a_missing_lora_alpha_is_pefts_default(tmp_path):
    from peft import LoraConfig

    tensors = peft_tensors()
    folder = tmp_path / "in"
    write(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK}))
    assert scales(folder)[UNET][0] == LoraConfig().lora_alpha / RANK


def test_mixed_ranks_divide_by_their_own_rank(tmp_path):
    folder = write_peft(peft_tensors(ranks=(2, 8)), tmp_path / "in", r=2, lora_alpha=4, rank_pattern={"to_k": 8})
    assert scales(folder) == {UNET: (2, "config"), OTHER: (0.5, "config")}
    assert warnings(folder) == ""


def test_diffusers_metadata_speaks_by_component(tmp_path):
    draw, tensors = Draw(), peft_tensors("unet.")
    tensors |= {f"text_encoder.{TEXT}{PEFT[role]}": t for role, t in low_rank((768, 768), RANK, draw).items()}
    blocks = {"unet.lora_alpha": 2, "unet.r": RANK, "unet.alpha_pattern": {f"^{OTHER}": 8}}
    blocks |= {"text_encoder.lora_alpha": 12, "text_encoder.r": RANK}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(blocks)}
    path = write(tensors, tmp_path / "in.safetensors", metadata)
    assert scales(path) == {UNET: (0.5, "metadata"), OTHER: (2, "metadata"), TEXT: (3, "metadata")}


def test_diffusers_metadata_of_one_component_leaves_the_other_at_one(tmp_path):
    draw, tensors = Draw(), peft_tensors("unet.")
    tensors |= {f"text_encoder.{TEXT}{PEFT[role]}": t for role, t in low_rank((768, 768), RANK, draw).items()}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": RANK})}
    path = write(tensors, tmp_path / "in.safetensors", metadata)
    assert scales(path) == {UNET: (0.5, "metadata"), OTHER: (0.5, "metadata"), TEXT: (1, "absent")}


@pytest.mark.parametrize("key", ["lora_alpha", "network_alpha", "alpha"])
def test_free_metadata_is_used_and_told(key, tmp_path):
    path = write(peft_tensors("unet."), tmp_path / "in.safetensors", {key: "2.0"})
    assert scales(path) == {UNET: (0.5, "metadata"), OTHER: (0.5, "metadata")}
    assert "free-form metadata" in warnings(path)


@pytest.mark.parametrize(("value", "code"), [("nan", 7), ("inf", 7), ("-Infinity", 7), ("four", 3), ("", 3)])
def test_free_metadata_that_is_no_number_is_refused(value, code, tmp_path):
    path = write(peft_tensors("unet."), tmp_path / "in.safetensors", {"lora_alpha": value})
    with pytest.raises(LoratoolsError) as refusal:
        loratools.convert(path, to="kohya")
    assert (refusal.value.exit_code, refusal.value.key) == (code, "lora_alpha")


@pytest.mark.parametrize("value", ["8", [8], True, {"a": 1}])
def test_a_configured_alpha_that_is_no_number_is_refused_or_read_exactly(value, tmp_path):
    folder = write_peft(peft_tensors(), tmp_path / "in", r=RANK, lora_alpha=value)
    if value == "8":
        assert scales(folder)[UNET] == (2, "config")
        return
    with pytest.raises(MalformedFile) as refusal:
        loratools.convert(folder, to="kohya")
    assert refusal.value.key == "lora_alpha"


def test_a_tensor_speaks_before_the_configuration_and_the_contradiction_is_told(tmp_path):
    tensors = peft_tensors()
    tensors[f"base_model.model.{UNET}.alpha"] = torch.tensor(2.0)
    folder = write_peft(tensors, tmp_path / "in", r=RANK, lora_alpha=8)
    assert scales(folder) == {UNET: (0.5, "tensor"), OTHER: (2, "config")}
    assert "contradicts the config" in warnings(folder)


def test_a_stated_rank_that_the_factors_do_not_have_is_told(tmp_path):
    folder = write_peft(peft_tensors(), tmp_path / "in", r=16, lora_alpha=8)
    assert scales(folder)[UNET] == (2, "config")
    assert "says rank 16, the factors have 4" in warnings(folder)


def test_sd_scripts_metadata_never_replaces_its_tensors(tmp_path):
    path = kohya(torch.tensor(2.0), metadata={"ss_network_alpha": "99", "ss_network_dim": "4"}, folder=tmp_path)
    assert scales(path)[UNET] == (0.5, "tensor")


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_rslora_keeps_its_scale_in_every_format(rank, to, tmp_path):
    folder = write_peft(peft_tensors(ranks=(rank, rank)), tmp_path / "in", r=rank, lora_alpha=3, use_rslora=True)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    loratools.convert(folder, to=to).save(out)
    # An irrational alpha is rounded to float32 where it must be a tensor.
    assert scales(out)[UNET][0] == pytest.approx(3 / math.sqrt(rank), rel=2**-24 if to == "kohya" else 1e-15)


def test_folding_alpha_keeps_the_delta(tmp_path):
    path = kohya(torch.tensor(2.0), folder=tmp_path)
    loratools.convert(path, to="kohya", alpha="fold").save(tmp_path / "out.safetensors")
    assert {scale for scale, _ in scales(tmp_path / "out.safetensors").values()} == {1.0}
    assert loratools.compare(path, tmp_path / "out.safetensors").worst == 0
