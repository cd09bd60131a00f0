"""Small files of the sort that trainers write: real names, real shapes, rank 4, made by safetensors itself."""

RANK = 4

# stem → (out, in) of the weight it changes; a third and fourth number are a kernel
SD1_KOHYA = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768),
    "lora_unet_mid_block_attentions_0_proj_in": (1280, 1280, 1, 1),
    "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj": (10240, 1280),
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj": (768, 768),
    "lora_te_text_model_encoder_layers_3_mlp_fc1": (3072, 768),
}
SDXL_KOHYA = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (640, 640),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048),
    "lora_unet_middle_block_1_proj_in": (1280, 1280),
    "lora_unet_middle_block_1_transformer_blocks_3_attn1_to_v": (1280, 1280),
    "lora_te1_text_model_encoder_layers_0_self_attn_k_proj": (768, 768),
    "lora_te2_text_model_encoder_layers_5_mlp_fc1": (5120, 1280),
}
SD1_PEFT = {
    "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320),
    "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (320, 768),
    "base_model.model.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": (10240, 1280),
}


def kohya_tensors(modules, *, alpha=2.0, seed=0):
    """The tensors that sd-scripts saves: lora_down [rank, in, ...], lora_up [out, rank, ...] and a scalar alpha."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(torch.float16)

    tensors = {}
    for stem, (rows, columns, *kernel) in modules.items():
        tensors[f"{stem}.lora_down.weight"] = draw(RANK, columns, *kernel)
        tensors[f"{stem}.lora_up.weight"] = draw(rows, RANK, *[1] * len(kernel))
        tensors[f"{stem}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
    return tensors


def save(tensors, path, metadata=None):
    """Write tensors by safetensors' own writer and give the path back."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata=metadata)
    return path
