"""Pipelines that no loader of diffusers takes a LoRA for: merged, rebuilt, loaded and run."""

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import loratools as lt
from tests.judges import by_peft

WIDTH = 32
PRIOR = "prior/diffusion_pytorch_model.safetensors"


@pytest.fixture
def text(pipeline):
    """The tokenizer of the tiny sd1 pipeline, and the configuration of a text encoder that goes with it."""
    folder = pipeline("sd1") / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=WIDTH, pad_token_id=0, **sizes, **ends)
    return tokenizer, config


@pytest.fixture
def kandinsky(text, tmp_path):
    """A tiny prior pipeline of Kandinsky 2.2, whose image encoder is deep enough to look like a model of its own."""
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler

    torch.manual_seed(0)
    tokenizer, config = text
    vision = {"hidden_size": WIDTH, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 5}
    sizes = {"image_size": 32, "patch_size": 8, "projection_dim": WIDTH}
    KandinskyV22PriorPipeline(
        prior=PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=1),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, **sizes)),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ).save_pretrained(tmp_path / "kandinsky")
    return tmp_path / "kandinsky"


def test_a_prior_of_kandinsky_is_rebuilt_with_the_float64_sum_and_runs(kandinsky, tmp_path):
    which = {"architecture": "kandinsky2.2", "container": "peft", "components": {"prior": None}}
    truth = by_peft.make(kandinsky, tmp_path / "lora", **which)
    done = lt.rebuild(kandinsky, [(truth.path, 0.5)], tmp_path / "out", arch="kandinsky2.2")
    assert done.trial.pipeline == "KandinskyV22PriorPipeline"
    assert done.trial.pixels is not None
    before, after = load_file(kandinsky / PRIOR), load_file(tmp_path / "out" / PRIOR)
    assert len(truth.deltas) > 5
    for (_, path), delta in truth.deltas.items():
        wanted = before[f"{path}.weight"].double() + 0.5 * delta
        assert (after[f"{path}.weight"].double() - wanted).norm() <= 1e-6 * wanted.norm()
    assert len(done.linked) == 2
    DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)


def test_a_prior_of_wuerstchen_is_rebuilt_though_diffusers_forgot_its_class(text, tmp_path):
    import diffusers
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPriorPipeline
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior

    tokenizer, config = text
    WuerstchenPriorPipeline(
        prior=WuerstchenPrior(c_in=16, c=64, c_cond=WIDTH, c_r=16, depth=2, nhead=4),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(config),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        latent_mean=0,
        latent_std=1,
    ).save_pretrained(tmp_path / "base")
    done = lt.rebuild(tmp_path / "base", [], tmp_path / "out", arch="wuerstchen")
    assert done.trial.pipeline == "WuerstchenPriorPipeline"
    assert done.trial.tensors["prior"] > 40
    assert not hasattr(diffusers, "WuerstchenPrior")
