"""Language models of transformers: which `model_type`s have the modules that a file names. Names stay as they are.

A model type is told by its modules alone, so the answer is a set: `q_proj` and `v_proj` are in twenty types, `q_norm`
in five. `.bias` and `.weight` count: Qwen2 is Llama with biases on q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.naming import Naming, Skeleton, skeleton

PREFIX = "llm-"
FAMILY = "llm"

# Heads and adapters' own modules, which any type may have.
ANYWHERE = "lm_head lm_head.bias score score.bias classifier classifier.bias embed_out"

QKVO = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
QKV_BIAS = "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias"
QK_NORM = "self_attn.q_norm self_attn.k_norm"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
GATE_UP = "mlp.gate_up_proj mlp.down_proj"
NORMS = "input_layernorm post_attention_layernorm"
NORM_BIASES = "input_layernorm.bias post_attention_layernorm.bias"
FEEDFORWARD_NORMS = "pre_feedforward_layernorm post_feedforward_layernorm"
EXPERTS = "mlp.gate"
# One tensor for all experts since transformers 5, one module an expert on disk and before.
EXPERTS_EITHER = (
    "mlp.experts.gate_up_proj mlp.experts.down_proj "
    "mlp.experts.#.gate_proj mlp.experts.#.up_proj mlp.experts.#.down_proj"
)
MIXTRAL_EITHER = (
    "mlp.gate mlp.experts.gate_up_proj mlp.experts.down_proj block_sparse_moe.gate "
    "block_sparse_moe.experts.#.w1 block_sparse_moe.experts.#.w2 block_sparse_moe.experts.#.w3"
)
BART_ATTENTION = " ".join(
    f"{name}.{part}{end}"
    for name in ("self_attn", "encoder_attn")
    for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    for end in ("", ".bias")
)
BART_REST = (
    "fc1 fc1.bias fc2 fc2.bias self_attn_layer_norm self_attn_layer_norm.bias encoder_attn_layer_norm "
    "encoder_attn_layer_norm.bias final_layer_norm final_layer_norm.bias"
)
BERT = (
    "attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm "
    "intermediate.dense output.dense output.LayerNorm"
)
BERT_ONCE = (
    "embeddings.word_embeddings embeddings.position_embeddings embeddings.token_type_embeddings embeddings.LayerNorm "
    "embeddings.LayerNorm.bias pooler.dense pooler.dense.bias"
)
GPT2_ONCE = "wte wpe ln_f ln_f.bias"
BLOOM_LAYER = "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h input_layernorm"
T5_ATTENTION = "layer.#.SelfAttention.q layer.#.SelfAttention.k layer.#.SelfAttention.v layer.#.SelfAttention.o"
T5_CROSS = "layer.#.EncDecAttention.q layer.#.EncDecAttention.k layer.#.EncDecAttention.v layer.#.EncDecAttention.o"
T5_REST = "layer.#.DenseReluDense.wo layer.#.layer_norm"
T5_GATED = "layer.#.DenseReluDense.wi_0 layer.#.DenseReluDense.wi_1"
T5_PLAIN = "layer.#.DenseReluDense.wi"
T5_BIAS = "layer.#.SelfAttention.relative_attention_bias"
T5_ONCE = "shared encoder.embed_tokens decoder.embed_tokens encoder.final_layer_norm decoder.final_layer_norm"


def _biased(modules: str) -> str:
    return " ".join(f"{module} {module}.bias" for module in modules.split())


# LLaVA has its Llama and its CLIP under one name as a class and under another in its files.
LLAVA_LEVELS = ("model.language_model.", "language_model.model.")
EYES_LAYER = _biased(
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj layer_norm1 layer_norm2 mlp.fc1 mlp.fc2"
).split()
LLAVA_EYES = (
    *(f"encoder.layers.#.{path}" for path in EYES_LAYER),
    *(f"embeddings.{name}_embedding" for name in ("class", "patch", "position")),
    *_biased("pre_layrnorm post_layernorm").split(),
)
LLAVA_ONCE = " ".join((
    *(f"{level}{path}" for level in LLAVA_LEVELS for path in ("embed_tokens", "norm")),
    *(f"{level}{path}" for level in ("model.vision_tower.", "vision_tower.", "vision_tower.vision_model.")
      for path in LLAVA_EYES),
    *(f"{level}multi_modal_projector.{path}" for level in ("model.", "")
      for path in _biased("linear_1 linear_2").split()),
    "language_model.lm_head",
))  # fmt: skip


class ModelType(NamedTuple):
    """One `model_type`: the words are module paths, `#` for a number.

    `layer` are the modules of every layer under one of `layers`, `either` those that a layer may have; `once` are the
    modules under `root` outside the layers, `outside` those next to it; `also` is what some files call `layers`.
    """

    name: str
    root: str
    layers: str
    layer: str
    either: str = ""
    once: str = "embed_tokens norm"
    outside: str = ""
    also: str = ""


@cache
def _known(kind: ModelType) -> frozenset[Skeleton]:
    """The skeletons of every path of a type."""
    inside = f"{kind.layer} {kind.either}".split()
    layers = f"{kind.layers} {kind.also}".split()
    rooted = [*(f"{layer}.{path}" for layer in layers for path in inside), *kind.once.split()]
    paths = [f"{kind.root}{path}" for path in rooted] + f"{kind.outside} {ANYWHERE}".split()
    return frozenset(_skeleton(path) for path in paths)


def _required(kind: ModelType) -> list[frozenset[Skeleton]]:
    """The skeletons of which one set must be whole in a model of a type."""
    return [
        frozenset(_skeleton(f"{kind.root}{layers}.{path}") for path in kind.layer.split())
        for layers in (kind.layers.split()[0], *kind.also.split())
    ]


@cache
def _skeleton(template: str) -> Skeleton:
    return skeleton(template.replace("#", "0"))[0]


DECODER = {"root": "model.", "layers": "layers.#"}
SEQ2SEQ = {"root": "model.", "layers": "encoder.layers.# decoder.layers.#"}
T5 = {"root": "", "layers": "encoder.block.# decoder.block.#", "once": T5_ONCE}

# Likeliest first: where modules do not tell, the order is the guess.
MODEL_TYPES: tuple[ModelType, ...] = (
    ModelType("llama",       **DECODER, layer=f"{QKVO} {GATED} {NORMS}"),
    ModelType("qwen2",       **DECODER, layer=f"{QKVO} {QKV_BIAS} {GATED} {NORMS}"),
    ModelType("mistral",     **DECODER, layer=f"{QKVO} {GATED} {NORMS}"),
    ModelType("qwen3",       **DECODER, layer=f"{QKVO} {QK_NORM} {GATED} {NORMS}"),
    ModelType("gemma",       **DECODER, layer=f"{QKVO} {GATED} {NORMS}"),
    ModelType("gemma2",      **DECODER, layer=f"{QKVO} {GATED} {NORMS} {FEEDFORWARD_NORMS}"),
    ModelType("gemma3_text", **DECODER, layer=f"{QKVO} {QK_NORM} {GATED} {NORMS} {FEEDFORWARD_NORMS}"),
    ModelType("gpt_oss",     **DECODER, layer=f"{_biased(QKVO)} self_attn.sinks mlp.router mlp.router.bias {NORMS}",
              either="mlp.experts.gate_up_proj mlp.experts.gate_up_proj_bias mlp.experts.down_proj "
                     "mlp.experts.down_proj_bias mlp.experts mlp.experts.base_layer"),
    ModelType("mixtral",     **DECODER, layer=f"{QKVO} {NORMS}", either=MIXTRAL_EITHER),
    ModelType("qwen2_moe",   **DECODER,
              layer=f"{QKVO} {QKV_BIAS} {EXPERTS} {NORMS} mlp.shared_expert.gate_proj mlp.shared_expert.up_proj "
                    "mlp.shared_expert.down_proj mlp.shared_expert_gate", either=f"{EXPERTS_EITHER} {GATED}"),
    ModelType("qwen3_moe",   **DECODER, layer=f"{QKVO} {QK_NORM} {EXPERTS} {NORMS}",
              either=f"{EXPERTS_EITHER} {GATED}"),
    ModelType("phi3",        **DECODER, layer=f"self_attn.qkv_proj self_attn.o_proj {GATE_UP} {NORMS}"),
    ModelType("phi",         **DECODER, layer=_biased("self_attn.q_proj self_attn.k_proj self_attn.v_proj "
                                                      "self_attn.dense mlp.fc1 mlp.fc2 input_layernorm"),
              once="embed_tokens final_layernorm final_layernorm.bias"),
    ModelType("granite",     **DECODER, layer=f"{QKVO} {GATED} {NORMS}"),
    ModelType("smollm3",     **DECODER, layer=f"{QKVO} {GATED} {NORMS}"),
    ModelType("stablelm",    **DECODER, layer=f"{QKVO} {GATED} {NORMS} {NORM_BIASES}", either=QKV_BIAS,
              once="embed_tokens norm norm.bias"),
    ModelType("olmo",        **DECODER, layer=f"{QKVO} {GATED}"),
    ModelType("olmo2",       **DECODER, layer=f"{QKVO} {QK_NORM} {GATED} post_attention_layernorm "
                                              "post_feedforward_layernorm"),
    ModelType("cohere",      **DECODER, layer=f"{QKVO} {GATED} input_layernorm", either=QK_NORM),
    ModelType("glm4",        **DECODER, layer=f"{QKVO} {GATE_UP} {NORMS} post_self_attn_layernorm post_mlp_layernorm",
              either=QKV_BIAS),
    ModelType("starcoder2",  **DECODER, layer=f"{_biased(QKVO)} {_biased('mlp.c_fc mlp.c_proj')} {NORMS} {NORM_BIASES}",
              once="embed_tokens norm norm.bias"),
    ModelType("deepseek_v3", **DECODER, layer=f"self_attn.kv_a_proj_with_mqa self_attn.kv_a_layernorm "
                                              f"self_attn.kv_b_proj self_attn.o_proj {NORMS}",
              either=f"self_attn.q_a_proj self_attn.q_a_layernorm self_attn.q_b_proj self_attn.q_proj {GATED} "
                     f"mlp.gate mlp.gate.e_score_correction_bias {EXPERTS_EITHER} mlp.shared_experts.gate_proj "
                     "mlp.shared_experts.up_proj mlp.shared_experts.down_proj"),
    ModelType("llava",       "", f"{LLAVA_LEVELS[0]}layers.#", f"{QKVO} {GATED} {NORMS}", once=LLAVA_ONCE,
              also=f"{LLAVA_LEVELS[1]}layers.#"),
    ModelType("gpt2",        "transformer.", "h.#", _biased("attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj ln_1 ln_2"),
              either="attn.bias attn.masked_bias", once=GPT2_ONCE),
    ModelType("gpt_neo",     "transformer.", "h.#",
              "attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj "
              + _biased("attn.attention.out_proj mlp.c_fc mlp.c_proj ln_1 ln_2"),
              either="attn.attention.bias attn.attention.masked_bias", once=GPT2_ONCE),
    ModelType("gptj",        "transformer.", "h.#",
              f"attn.q_proj attn.k_proj attn.v_proj attn.out_proj {_biased('mlp.fc_in mlp.fc_out ln_1')}",
              either="attn.bias attn.masked_bias", once="wte ln_f ln_f.bias"),
    ModelType("gpt_neox",    "gpt_neox.", "layers.#",
              _biased(f"attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h {NORMS}"),
              either="attention.bias attention.masked_bias attention.rotary_emb.inv_freq",
              once="embed_in final_layer_norm final_layer_norm.bias"),
    ModelType("bloom",       "transformer.", "h.#", _biased(f"{BLOOM_LAYER} post_attention_layernorm"),
              once="word_embeddings word_embeddings_layernorm word_embeddings_layernorm.bias ln_f ln_f.bias"),
    ModelType("falcon",      "transformer.", "h.#", BLOOM_LAYER,
              either=f"{_biased(BLOOM_LAYER)} {_biased('ln_attn ln_mlp post_attention_layernorm')}",
              once="word_embeddings ln_f ln_f.bias"),
    ModelType("whisper",     **SEQ2SEQ, layer="self_attn.q_proj self_attn.v_proj self_attn.out_proj fc1 fc2",
              either=f"{BART_ATTENTION} {BART_REST}",
              once="encoder.conv1 encoder.conv1.bias encoder.conv2 encoder.conv2.bias encoder.embed_positions "
                   "encoder.layer_norm encoder.layer_norm.bias decoder.embed_tokens decoder.embed_positions "
                   "decoder.layer_norm decoder.layer_norm.bias", outside="proj_out"),
    ModelType("bart",        **SEQ2SEQ, layer="self_attn.q_proj self_attn.v_proj self_attn.out_proj fc1 fc2",
              either=f"{BART_ATTENTION} {BART_REST}",
              once="shared encoder.embed_tokens decoder.embed_tokens encoder.embed_positions decoder.embed_positions "
                   + _biased("encoder.layernorm_embedding decoder.layernorm_embedding"),
              outside="final_logits_bias classification_head.dense classification_head.out_proj"),
    ModelType("opt",         "model.decoder.", "layers.#",
              _biased("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj self_attn_layer_norm "
                      "fc1 fc2 final_layer_norm"),
              once="embed_tokens embed_positions final_layer_norm final_layer_norm.bias project_in project_out"),
    ModelType("t5",          **T5, layer=f"{T5_ATTENTION} {T5_REST}",
              either=f"{T5_CROSS} {T5_BIAS} {T5_PLAIN} {T5_GATED}"),
    ModelType("mt5",         **T5, layer=f"{T5_ATTENTION} {T5_REST} {T5_GATED}", either=f"{T5_CROSS} {T5_BIAS}"),
    ModelType("umt5",        **T5, layer=f"{T5_ATTENTION} {T5_REST} {T5_GATED}", either=f"{T5_CROSS} {T5_BIAS}"),
    ModelType("bert",        "bert.", "encoder.layer.#", _biased(BERT), once=BERT_ONCE,
              outside=_biased("cls.predictions.transform.dense cls.predictions.transform.LayerNorm "
                              "cls.predictions.decoder cls.seq_relationship") + " cls.predictions.bias"),
    ModelType("roberta",     "roberta.", "encoder.layer.#", _biased(BERT), once=BERT_ONCE,
              outside=_biased("lm_head.dense lm_head.layer_norm lm_head.decoder classifier.dense classifier.out_proj")),
    ModelType("distilbert",  "distilbert.", "transformer.layer.#",
              _biased("attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm ffn.lin1 "
                      "ffn.lin2 output_layer_norm"),
              once="embeddings.word_embeddings embeddings.position_embeddings embeddings.LayerNorm "
                   "embeddings.LayerNorm.bias",
              outside=_biased("vocab_transform vocab_layer_norm vocab_projector pre_classifier")),
)  # fmt: skip


def model_types(paths: Iterable[str], *, complete: bool = False) -> tuple[str, ...]:
    """The model types, likeliest first, that have every one of these module paths (a bias as `path.bias`).

    With or without the level that the bare model leaves out (`model.`, `transformer.`, `bert.`). `complete` says that
    the paths are a whole model's: then a module that is missing rules a type out as well.
    """
    named = frozenset(skeleton(path)[0] for path in paths)
    if not any("#" in words for words in named):
        return ()
    return tuple(kind.name for kind in MODEL_TYPES if _fits(kind, named, complete=complete))


def are_ends(paths: Iterable[str]) -> bool:
    """Whether these are heads and embeddings alone, which tell no type, but that the model is one of words."""
    return {path.rpartition(".")[2] for path in paths} <= {*ANYWHERE.split(), "embed_tokens"}


def _fits(kind: ModelType, named: frozenset[Skeleton], *, complete: bool) -> bool:
    for root in ((), skeleton(kind.root)[0]):
        rooted = frozenset(words if words in _known(kind) else root + words for words in named)
        if rooted <= _known(kind):
            return not complete or any(wanted <= rooted for wanted in _required(kind))
    return False


def architecture_id(model_type: str) -> str:
    """`llm-gpt-oss` for `gpt_oss`."""
    return PREFIX + model_type.replace("_", "-")


@cache
def llm_architecture(name: str) -> Architecture | None:
    """The architecture of an id such as `llm-qwen2`: one component whose names are their own canonical spelling."""
    for kind in MODEL_TYPES:
        if architecture_id(kind.name) == name:
            model = Component("model", (Naming("transformers", (), verbatim=True),), short=())
            title = f"transformers model type {kind.name}"
            return Architecture(name, title, (model,), variants=(), kohya="transformers", family=(FAMILY,))
    return None
