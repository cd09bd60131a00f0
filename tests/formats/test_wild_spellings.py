"""Keys as they are met: whatever mixture of prefix, naming and suffix, each goes to the one layer that it means."""

import pytest

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.formats.opening import Opened, Part
from loratools.formats.parse import parse
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import MemoryTensors
from tests.formats.making import KOHYA, NAMED, OLD, PEFT

BARE = {"down": ".lora_A", "up": ".lora_B"}
LINEAR = {"down": ".lora_linear_layer.down.weight", "up": ".lora_linear_layer.up.weight"}
PROCESSOR = {"down": "_lora.down.weight", "up": "_lora.up.weight"}
DIFF = {"diff": ".diff"}
FLUX, FLUX_SINGLE = "transformer_blocks.9.attn.to_k", "single_transformer_blocks.0.attn.to_k"
CLIP, T5 = "text_model.encoder.layers.3.mlp.fc1", "encoder.block.2.layer.1.DenseReluDense.wi_1"
CASCADE = "down_blocks.0.2.attention.to_q"
# how a key begins, how it ends, architecture, component, the layer's canonical path
MET = (
    ("lora_unet_transformer_blocks_9_attn_to_k_", KOHYA, "flux1", "transformer", FLUX),
    ("lora_transformer_single_transformer_blocks_0_attn_to_k", KOHYA, "flux1", "transformer", FLUX_SINGLE),
    ("lycoris_transformer_blocks_9_attn_to_k", KOHYA, "flux1", "transformer", FLUX),
    ("lycoris_transformer_blocks.9.attn.to_k", KOHYA, "flux1", "transformer", FLUX),
    ("transformer.base_model.model.transformer_blocks.9.attn.to_k", PEFT, "flux1", "transformer", FLUX),
    ("transformer.transformer_blocks.9.attn.to_k", KOHYA, "flux1", "transformer", FLUX),
    ("transformer_blocks.9.attn.to_k", NAMED, "flux1", "transformer", FLUX),
    ("module.transformer_blocks.9.attn.to_k", PEFT, "flux1", "transformer", FLUX),
    ("base_model.model.transformer_blocks.9.attn.to_k", PEFT, "flux1", "transformer", FLUX),
    ("lora_te1.text_model.encoder.layers.3.mlp.fc1", PEFT, "flux1", "text_encoder", CLIP),
    ("text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1", PEFT, "flux1", "text_encoder", CLIP),
    ("text_encoder.encoder.layers.3.mlp.fc1", PEFT, "flux1", "text_encoder", CLIP),
    ("lora_te3_encoder_block_2_layer_1_DenseReluDense_wi_1", KOHYA, "flux1", "text_encoder_2", T5),
    ("lora_te2_encoder_block_2_layer_1_DenseReluDense_wi_1", KOHYA, "flux1", "text_encoder_2", T5),
    (f"text_encoders.t5xxl.transformer.{T5}", PEFT, "flux1", "text_encoder_2", T5),
    ("text_encoders.t5xxl.transformer.encoder.block.2.layer.1.layer_norm", DIFF, "flux1", "text_encoder_2",
     "encoder.block.2.layer.1.layer_norm"),
    ("lora_te_text_model_encoder_layers_3_mlp_fc1", KOHYA, "sd1", "text_encoder", CLIP),
    ("lora_te_text_model_encoder_layers_22_mlp_fc1", KOHYA, "sd2", "text_encoder",
     "text_model.encoder.layers.22.mlp.fc1"),
    ("text_encoder.text_model.encoder.layers.3.mlp.fc1", LINEAR, "sd1", "text_encoder", CLIP),
    ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", OLD, "sd1", "unet",
     "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out", PROCESSOR, "sd1", "unet",
     "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"),
    ("unet.base_model.model.mid_block.attentions.0.proj_in", PEFT, "sd1", "unet", "mid_block.attentions.0.proj_in"),
    ("lora_unet_output_blocks_2_1_conv", KOHYA, "sd1", "unet", "up_blocks.0.upsamplers.0.conv"),
    ("lora_unet_output_blocks_2_2_conv", KOHYA, "sdxl", "unet", "up_blocks.0.upsamplers.0.conv"),
    ("lora_unet_label_emb_0_2", KOHYA, "sdxl", "unet", "add_embedding.linear_2"),
    ("lora_te2_text_projection", KOHYA, "sdxl", "text_encoder_2", "text_projection"),
    ("lora_unet_blocks_0.cross_attn.k", KOHYA, "wan2.1", "transformer", "blocks.0.attn2.to_k"),
    ("lora_unet__blocks_0_cross_attn_k", KOHYA, "wan2.1", "transformer", "blocks.0.attn2.to_k"),
    ("transformer_2.blocks.0.attn2.to_k", PEFT, "wan2.2", "transformer_2", "blocks.0.attn2.to_k"),
    ("diffusion_model.blocks.0.cross_attn.k_img", PEFT, "wan2.1", "transformer", "blocks.0.attn2.add_k_proj"),
    ("blocks.0.mlp_x.w2", BARE, "mochi", "transformer", "transformer_blocks.0.ff.net.2"),
    ("layers.0.self_attn.q_proj", PEFT, "ace-step", "transformer", "layers.0.self_attn.to_q"),
    ("lora_prior_unet_down_blocks_0_2_attention_attn_to_q", KOHYA, "stable-cascade", "prior", CASCADE),
    ("lora_prior_te_text_model_encoder_layers_3_mlp_fc1", KOHYA, "stable-cascade", "text_encoder", CLIP),
    ("prior.down_blocks.0.2.attention.to_q", PEFT, "stable-cascade", "prior", CASCADE),
    ("diffusion_model.llm_adapter.blocks.3.self_attn.q_proj", PEFT, "anima", "text_conditioner",
     "blocks.3.self_attn.q_proj"),
)  # fmt: skip


def weight_of(arch, component, path):
    tables = [shapes(variant.shapes) for variant in architecture(arch).variants]
    return next(table[component][path] for table in tables if path in table.get(component, {}))


@pytest.mark.parametrize(("stem", "ends", "arch", "component", "path"), MET, ids=[row[0] for row in MET])
def test_a_key_means_one_layer(stem, ends, arch, component, path):
    rows, *rest = weight_of(arch, component, path)
    factors = {"down": (2, *rest), "up": (rows, 2, *[1] * len(rest[1:])), "diff": (rows, *rest)}
    tensors = {stem + end: LazyTensor.zeros("F16", factors[role]) for role, end in ends.items() if role in factors}
    reading = parse(Opened("in", (Part(None, MemoryTensors(tensors)),)), arch=arch)
    assert reading.unknown == ()
    (item,) = reading.adapters.adapters
    assert (item.target.component, item.target.paths) == (component, (path,))
    assert arch in parse(Opened("in", (Part(None, MemoryTensors(tensors)),))).adapters.architectures
