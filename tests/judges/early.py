"""Pipelines that no LoRA loader serves any more (Kandinsky 2.2, Würstchen), tiny, and files of attention processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.judges.truth import Place, Truth, place

HEADS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
"""The projections of an attention that its processor had a LoRA for."""
EMBEDDING = 32


def decoder(folder: Path, _tokenizer: Path) -> Path:
    """A Kandinsky 2.2 decoder: a UNet over image embeddings, with the blocks of the published one."""
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=EMBEDDING,
        cross_attention_dim=32,
        attention_head_dim=16,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    KandinskyV22Pipeline(unet, DDPMScheduler(), movq).save_pretrained(folder)
    return folder


def prior(folder: Path, tokenizer: Path) -> Path:
    """A Kandinsky 2.2 prior: a transformer from text to image embeddings, two of its layers."""
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": EMBEDDING, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = PriorTransformer(num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=EMBEDDING)
    torch.nn.init.ones_(model.clip_std)  # zero from its class, and every embedding with it
    KandinskyV22PriorPipeline(
        prior=model,
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=EMBEDDING)
        ),
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **_ends(words), projection_dim=EMBEDDING)),
        tokenizer=words,
        scheduler=UnCLIPScheduler(prediction_type="sample"),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
    ).save_pretrained(folder)
    return folder


def stage_c(folder: Path, tokenizer: Path) -> Path:
    """A Würstchen prior, two of its sixteen triples of blocks."""
    from diffusers import DDPMWuerstchenScheduler, WuerstchenPriorPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": EMBEDDING, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = wuerstchen_prior()(c_in=4, c=32, c_cond=EMBEDDING, c_r=8, depth=2, nhead=2)
    model.out[1].weight.data.mul_(0.1)  # it divides by one less these outputs, which must not be nearly nought
    text_encoder = CLIPTextModel(CLIPTextConfig(**sizes, **_ends(words)))
    WuerstchenPriorPipeline(words, text_encoder, model, DDPMWuerstchenScheduler()).save_pretrained(folder)
    return folder


def _ends(words: Any) -> dict[str, int]:
    return {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}


def wuerstchen_prior() -> Any:
    """The class of its model, which diffusers saves and no longer exports."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior

    return WuerstchenPrior


def processors(model: nn.Module, component: str, out: Path, *, prefix: str = "") -> Truth:
    """A file as `save_attn_procs` wrote it, pickled where `out` ends in .bin; the truth is the float64 product."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    deltas: dict[Place, torch.Tensor] = {}
    for name, module in model.named_modules():
        head = next((head for head in HEADS if name.endswith(f".{head}")), None)
        if head is None or not isinstance(module, nn.Linear):
            continue
        rows, columns = module.weight.shape
        stem = f"{prefix}{name.removesuffix(head)}processor.{head.removesuffix('.0')}_lora"
        down, up = (torch.randn(size, generator=draw) / 8 for size in ((4, columns), (rows, 4)))
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
        deltas[place(component, name)] = up.double() @ down.double()
    if out.suffix == ".bin":
        torch.save(tensors, out)
    else:
        save_file(tensors, out)
    return Truth(out, "", deltas)
