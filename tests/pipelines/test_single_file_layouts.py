"""A single file lays rows out as the model's own names want them, judged by diffusers' converter."""

import json

import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from loratools.architectures.registry import architecture
from loratools.bases.checkpoint import open_checkpoint
from loratools.pipelines.single_file import pack

PREFIX = "model.diffusion_model."
SIZES = {
    "sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 4,
    "num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 8,
    "pos_embed_max_size": 4,
}  # fmt: skip


def test_only_the_last_of_the_adaptive_norms_has_its_halves_the_other_way_round(tmp_path):
    model = SD3Transformer2DModel(**SIZES)
    model.save_pretrained(tmp_path / "transformer")
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    packed = pack(open_checkpoint(tmp_path), architecture("sd3"))
    native = {key.removeprefix(PREFIX): tensor.load() for key, tensor in packed.items()}
    expected = dict(model.state_dict())
    positions = {"pos_embed": expected["pos_embed.pos_embed"]}
    converted = convert_sd3_transformer_checkpoint_to_diffusers({**native, **positions})
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())
    norms = [
        f"transformer_blocks.{block}.norm1_context.linear.{leaf}" for block in range(2) for leaf in ("weight", "bias")
    ]
    swapped = [
        not torch.equal(native[f"joint_blocks.{block}.context_block.adaLN_modulation.1.{leaf}"], expected[name])
        for name, (block, leaf) in zip(norms, [(b, k) for b in range(2) for k in ("weight", "bias")], strict=True)
    ]
    assert swapped == [False, False, True, True]
