"""UMT5 as Wan's release has it: the encoder that its names make answers as transformers' does, merged or not."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu, softmax
from transformers import UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

import loratools as lt

TOKENS = torch.arange(3, 15)[None]


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x):
        return x * x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt() * self.weight


class Attention(nn.Module):
    def __init__(self, width, inner, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in "qkv")
        self.o = nn.Linear(inner, width, bias=False)

    def forward(self, x, distances):
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        found = softmax(q @ k.transpose(-1, -2) + distances, -1) @ v  # T5 does not divide by √d
        return self.o(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(width, inner, bias=False))
        self.fc1, self.fc2 = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.fc2(self.fc1(x) * gelu(self.gate(x), approximate="tanh"))


class Distances(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.embedding = nn.Embedding(32, heads)

    def forward(self, length, bucket):
        at = torch.arange(length)
        return self.embedding(bucket(at[None] - at[:, None])).permute(2, 0, 1)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1, self.norm2 = Norm(config.d_model), Norm(config.d_model)
        self.attn = Attention(config.d_model, config.num_heads * config.d_kv, config.num_heads)
        self.ffn = FeedForward(config.d_model, config.d_ff)
        self.pos_embedding = Distances(config.num_heads)

    def forward(self, x, bucket):
        x = x + self.attn(self.norm1(x), self.pos_embedding(x.shape[1], bucket))
        return x + self.ffn(self.norm2(x))


class WanEncoder(nn.Module):
    """The encoder by the modules of Wan's release: `blocks.0.attn.q`, `blocks.0.ffn.gate.0`, …"""

    def __init__(self, config, bucket):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm, self.bucket = Norm(config.d_model), bucket

    def forward(self, tokens):
        x = self.token_embedding(tokens)
        for block in self.blocks:
            x = block(x, self.bucket)
        return self.norm(x)


@pytest.fixture
def encoder(pipeline):
    return UMT5EncoderModel.from_pretrained(pipeline("wan2.1") / "text_encoder").eval()


def renamed(tensors):
    """transformers' tensors under Wan's names, as public converters rename them."""
    found = {}
    for key, tensor in tensors.items():
        name = key.replace("encoder.block.", "blocks.").replace("layer.0.SelfAttention.", "attn.")
        for old, new in (
            ("attn.relative_attention_bias", "pos_embedding.embedding"),
            ("layer.0.layer_norm", "norm1"),
            ("layer.1.layer_norm", "norm2"),
            ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
            ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
            ("layer.1.DenseReluDense.wo", "ffn.fc2"),
            ("encoder.final_layer_norm", "norm"),
            ("shared", "token_embedding"),
        ):
            name = name.replace(old, new)
        if key != "encoder.embed_tokens.weight":
            found[name] = tensor.contiguous()
    return found


@torch.no_grad()
def wan_answer(encoder, tensors):
    attention = encoder.encoder.block[0].layer[0].SelfAttention
    assert isinstance(attention, UMT5Attention)
    made = WanEncoder(encoder.config, attention._relative_position_bucket)
    made.load_state_dict(tensors)
    return made(TOKENS)


@torch.no_grad()
def answer(encoder):
    return encoder(TOKENS).last_hidden_state


def adapted(encoder, folder):
    """An adapter that peft writes, and the answer of what peft merges."""
    model = get_peft_model(encoder, LoraConfig(r=2, lora_alpha=3, target_modules=["q", "v", "wi_0", "wo"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 4
    model.save_pretrained(folder)
    return model.merge_and_unload().eval()


def near(ours, theirs):
    return (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_adapter_is_merged_into_the_release_as_peft_merges_it(suffix, encoder, tmp_path):
    tensors = renamed(encoder.state_dict())
    assert near(wan_answer(encoder, tensors), answer(encoder))
    base = tmp_path / f"models_t5_umt5-xxl-enc-bf16{suffix}"
    save_file(tensors, base) if suffix == ".safetensors" else torch.save(tensors, base)
    before = answer(encoder)
    merged = adapted(encoder, tmp_path / "lora")
    out = tmp_path / "merged.safetensors"
    lt.merge(base, [tmp_path / "lora"], out, arch="wan2.1", unsafe_pickle=suffix == ".pth")
    found = load_file(out)
    assert set(found) == set(tensors)
    assert near(wan_answer(encoder, found), answer(merged))
    assert not near(answer(merged), before)


def test_an_adapter_in_the_names_of_the_release_is_the_one_in_those_of_transformers(encoder, tmp_path):
    adapted(encoder, tmp_path / "lora")
    held = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    bare = {key.removeprefix("base_model.model."): tensor for key, tensor in held.items()}
    save_file({f"text_encoder.{key}": tensor for key, tensor in renamed(bare).items()}, tmp_path / "wan.safetensors")
    save_file({f"text_encoder.{key}": tensor for key, tensor in bare.items()}, tmp_path / "theirs.safetensors")
    lora = lt.open(tmp_path / "wan.safetensors", arch="wan2.1")
    assert "text_encoder:encoder.block.1.layer.0.SelfAttention.q" in {item.target.name for item in lora.adapters}
    found = lt.compare(tmp_path / "wan.safetensors", tmp_path / "theirs.safetensors", arch="wan2.1")
    assert (found.worst, found.equal) == (0, True)
