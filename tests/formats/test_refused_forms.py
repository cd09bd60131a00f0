"""Forms that are recognised and cannot be read say so, and what to give in their place."""

import pytest
import torch

import loratools
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.errors import UnreadableForm, UnsupportedFile, WrongRole
from tests.formats.making import KOHYA, Draw, low_rank, write, write_peft


def nunchaku():
    found = {}
    for block in range(2):
        for leaf, rows, columns in (("qkv_proj", 96, 32), ("out_proj", 32, 32), ("mlp_fc1", 128, 32)):
            stem = f"transformer_blocks.{block}.{leaf}"
            found |= {f"{stem}.lora_down": torch.zeros(columns, 16), f"{stem}.lora_up": torch.zeros(rows, 16)}
    return found


def test_factors_packed_by_nunchaku_are_refused_with_the_reason(tmp_path):
    source = write(nunchaku(), tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert (found["role"], found["format"], found["kinds"], found["architecture"]) == (
        "adapter",
        "nunchaku",
        ["lora"],
        None,
    )
    assert "packs its factors" in found["warnings"][0]
    with pytest.raises(UnreadableForm, match="Nunchaku") as refusal:
        loratools.convert(source, to="kohya")
    assert (refusal.value.exit_code, refusal.value.path) == (3, str(source))
    assert "LoRA that it was made from" in refusal.value.hint


def test_a_model_that_nunchaku_quantised_is_no_adapter_and_no_base_to_merge_into(tmp_path):
    packed = {"transformer_blocks.0.qkv_proj.qweight": torch.zeros(4, 4, dtype=torch.int8)}
    base = write(nunchaku() | packed, tmp_path / "base.safetensors")
    assert loratools.inspect(base).document["role"] != "adapter"
    with pytest.raises(WrongRole, match="no adapter"):
        loratools.convert(base, to="kohya")
    stem = "lora_unet_single_blocks_0_linear2"
    lora = write(
        {stem + KOHYA[r]: t for r, t in low_rank((3072, 15360), 1, Draw()).items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UnsupportedFile, match="packed") as refusal:
        loratools.merge(base, [lora], tmp_path / "out.safetensors")
    assert refusal.value.key == "transformer_blocks.0.qkv_proj.qweight"


def control_lora(name):
    """The keys of Stability AI's Control-LoRAs, which ComfyUI and Forge read: (those of factors, all)."""
    known = architecture(name)
    sizes, factors, held = shapes(known.variants[0].shapes)["unet"], set(), {}
    for placement in known.by_name["unet"].naming("ldm").placements():
        stem = placement.native
        half = stem.startswith(("input_blocks.", "middle_block.", "time_embed.", "label_emb."))
        if not half or placement.paths[0] not in sizes:
            continue
        rows, *rest = sizes[placement.paths[0]]
        if rest:
            held |= {f"{stem}.up": (rows, 1, *(1 for _ in rest[1:])), f"{stem}.down": (1, *rest)}
            factors |= {f"{stem}.up", f"{stem}.down"}
        else:
            held[f"{stem}.weight"] = (rows,)
        held[f"{stem}.bias"] = (rows,)
    held |= {
        "zero_convs.0.0.weight": (320, 320, 1, 1),
        "zero_convs.0.0.bias": (320,),
        "middle_block_out.0.bias": (1280,),
    }
    held |= {"input_hint_block.0.weight": (16, 3, 3, 3), "input_hint_block.0.bias": (16,), "lora_controlnet": (0,)}
    return factors, {key: torch.zeros(size, dtype=torch.float16) for key, size in held.items()}


@pytest.mark.parametrize("name", ["sdxl", "sd1", "sd2"])
def test_a_control_lora_is_a_controlnet_in_factors_and_no_adapter(name, tmp_path):
    factors, held = control_lora(name)
    assert len(factors) > 200
    source = write(held, tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert (found["role"], found["format"], found["architecture"]) == ("controlnet", "control-lora", name)
    for job in (
        lambda: loratools.convert(source, to="kohya"),
        lambda: loratools.merge(tmp_path, [source], tmp_path / "out.safetensors"),
    ):
        with pytest.raises(WrongRole, match="Control-LoRA") as refusal:
            job()
        assert (refusal.value.exit_code, refusal.value.key) == (4, "lora_controlnet")
        assert "as a ControlNet" in refusal.value.hint


def test_a_tuner_of_pefts_that_is_not_read_is_named(tmp_path):
    from peft import VeraConfig, get_peft_model

    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), VeraConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path / "vera")
    found = loratools.inspect(tmp_path / "vera").document
    assert (found["role"], found["format"], found["adapters"]) == ("adapter", "peft", 0)
    with pytest.raises(UnreadableForm, match="VERA") as refusal:
        loratools.convert(tmp_path / "vera", to="kohya")
    assert refusal.value.key.startswith("base_model.model.")
    empty = write_peft({"base_model.model.0.weight": torch.zeros(2)}, tmp_path / "lora")
    with pytest.raises(UnreadableForm, match="LORA"):
        loratools.convert(empty, to="kohya")
