"""diffusers' loaders of transformers, one row each: the ways of their code, as run with diffusers 0.42.1."""

from __future__ import annotations

from collections.abc import Mapping

from loratools.formats.loading import LOADS, fails, refuses, unknown
from loratools.formats.loads_loaders import (
    ALPHA_FREE,
    DORA_SCALE,
    KINDS,
    NAMED,
    NO_FACTORS,
    NO_MODULE,
    NOT_A_MODULE,
    PLAIN_ROWS,
    UNNAMED,
    Loader,
    Way,
)
from loratools.formats.loads_rows import Row

NO_ALPHA = refuses("it asks for an alpha tensor of every layer")
UNKNOWN_LAYER = refuses("its converter does not know all of the layers")
MIXED_BLOCK = refuses("of a block it knows the attention alone under these names")
OTHER_NAMES = refuses("its converter knows no names but the original ones")
FORGOTTEN = fails("left out: the converter forgets the component before these names", "run")
NOT_CONVERTED = fails("left out: its converter does not know the layer", "run")
DROPPED = fails("left out: it keeps the keys that begin with `transformer.` alone", "run")
ALPHA_LOST = fails("scaled wrongly: the alpha tensor is not read", "run")
SWAPPED = fails("wrong: it swaps the halves of lora_A, too", "run")
CUT = refuses("it cuts lora_A of the text refiner's fused layers in three")
UNSWAPPED = fails("wrong: it leaves the halves of the last modulation in their original order", "run")
FUSED = fails("left out: it does not split the fused layer", "run")
WHOLE_MODEL = unknown("it asks for every layer of the model under these names; whether all are here was not counted")
OF_KOHYA, OF_COMFY, OF_PEFT = ("kohya",), ("comfy",), ("peft",)
AB, DOWN_UP = ("peft",), ("kohya",)

WAN_BLOCK = (
    *(f"{place}.{leaf}" for place in ("attn1", "attn2") for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    "ffn.net.0.proj", "ffn.net.2",
)  # fmt: skip
LUMINA_BLOCK = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "feed_forward.linear_1", "feed_forward.linear_2",
    "feed_forward.linear_3",
)  # fmt: skip
LUMINA_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "noise_refiner": (*LUMINA_BLOCK, "norm1.linear"),
    "context_refiner": LUMINA_BLOCK,
    "layers": (*LUMINA_BLOCK, "norm1.linear"),
}

# Whose converters know every layer by its original name, or by diffusers', behind `diffusion_model.`
BEHIND_PREFIX = (
    Row(NO_FACTORS, families=DOWN_UP),
    Row(NAMED, marks=("named",)),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(ALPHA_FREE, marks=("alpha elsewhere",)),
)
WAN_DOTTED = (
    Row(UNKNOWN_LAYER, marks=(".dora_scale",)),
    Row(UNKNOWN_LAYER, kinds=("boft", "glora", "ia3", "loha", "lokr", "norm", "oft")),
    Row(fails("left out: a difference of whole weights", "read"), kinds=("full",)),
    Row(UNKNOWN_LAYER, native=False),
    Row(UNKNOWN_LAYER, match=r"^(?!blocks\.|condition_embedder\.|proj_out$)"),
    Row(UNKNOWN_LAYER, paths=("condition_embedder.", "proj_out"), marks=("alpha",)),
    Row(ALPHA_FREE, marks=("alpha elsewhere",)),
    Row(LOADS, styles=OF_COMFY),
)
WAN_FLAT = (
    Row(NO_FACTORS, kinds=KINDS),
    Row(UNKNOWN_LAYER, marks=(".dora_scale",)),
    Row(OTHER_NAMES, native=False),
    Row(NO_ALPHA, unless=("alpha",)),
    Row(LOADS, styles=OF_KOHYA, words=("unet",)),
)
# Of Qwen-Image and Z-Image, whose converters are told by any of three signs.
SIGNED = (
    Row(NO_FACTORS, kinds=KINDS),
    Row(NO_MODULE, styles=("component", "peft")),
    Row(NO_MODULE, words=("transformer",)),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(ALPHA_FREE, marks=("alpha elsewhere",)),
)
QWEN21 = ("qwen-image-2.1",)
QWEN = (
    *SIGNED,
    Row(UNKNOWN_LAYER, QWEN21, styles=OF_KOHYA, match=r"^(modulation|txt_in)\."),
    Row(NOT_CONVERTED, QWEN21, styles=OF_KOHYA, match=r"gate_layer$"),
    Row(LOADS, native=False),
)
Z_IMAGE = (
    *SIGNED,
    Row(FUSED, styles=("comfy", "bare"), native=True, match=r"attention\.to_q"),
    Row(NOT_CONVERTED, styles=("comfy", "bare"), native=True, families=AB, renamed=True),
    Row(LOADS),
)
LOKR_DOTTED = (Row(LOADS, kinds=("lokr",), styles=("comfy", "bare"), native=False),)
FLUX_FLAT = (
    Row(fails("wrong: a bias beside factors (diff_b) is left out", "run"), kinds=("lora",), marks=("bias_diff",)),
    Row(fails("left out: the text encoders that it knows are CLIP's alone", "read"), words=("te2", "te3", "t5xxl")),
    Row(fails("left out: it drops text_projection", "read"), paths=("text_projection",)),
    Row(fails("left out: not a LoRA of two factors", "read"), kinds=KINDS),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(LOADS, components=("text_encoder",)),
    Row(OTHER_NAMES, styles=("kohya", "comfy"), native=False),
    Row(UNKNOWN_LAYER, styles=("kohya", "comfy"), paths=("distilled_guidance_layer.",)),
    Row(FORGOTTEN, styles=("kohya", "comfy"), match=r"^(?!(single_)?transformer_blocks\.)"),
    Row(ALPHA_FREE, marks=("alpha elsewhere",)),
    Row(LOADS, styles=("kohya", "comfy")),
)
FLUX_MIXED = (
    Row(NO_FACTORS, kinds=KINDS),
    Row(NO_ALPHA, unless=("alpha",)),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(fails("left out: names of two trainers' in one file", "read"), words=("unet",)),
    Row(MIXED_BLOCK, match=r"transformer_blocks\.\d+\.(?!attn\.)"),
    Row(LOADS, words=("transformer", "te1")),
)
FLUX_COMPONENT = (
    Row(DROPPED, components=("text_encoder", "text_encoder_2")),
    Row(ALPHA_LOST, marks=("alpha",), scaled=True),
    Row(LOADS, styles=("component",), families=DOWN_UP, kinds=("lora",), native=False, unless=(".dora_scale", "named")),
    *PLAIN_ROWS,
)
HUNYUAN = (
    Row(NO_MODULE, styles=OF_KOHYA),
    Row(NO_FACTORS, families=DOWN_UP),
    Row(CUT, match=r"token_refiner\..*\.attn\.to_q"),
    Row(SWAPPED, paths=("norm_out.",)),
    Row(ALPHA_FREE, marks=("alpha elsewhere",)),
    Row(LOADS, families=AB),
)
FLUX2_ENDS = ("x_embedder", "context_embedder", "time_guidance_embed.timestep_embedder.", "proj_out")
FLUX2_FLAT = (
    Row(UNNAMED, native=False),
    Row(UNNAMED, styles=("component", "comfy", "peft", "bare", "lycoris")),
    Row(NOT_CONVERTED, match=rf"^(?!(single_)?transformer_blocks\.|{'|'.join(FLUX2_ENDS)})"),
    Row(DORA_SCALE, marks=(".dora_scale",)),
    Row(LOADS, styles=OF_KOHYA),
)
FLUX2_DOTTED = (
    *BEHIND_PREFIX,
    Row(UNKNOWN_LAYER, renamed=False, match=r"^(?!(single_)?transformer_blocks\.)"),
    Row(UNSWAPPED, renamed=True, paths=("norm_out.",)),
    Row(LOADS, styles=("comfy", "peft"), families=AB),
)
IDEOGRAM = (
    Row(NO_FACTORS, kinds=KINDS),
    Row(UNKNOWN_LAYER, styles=("component", "peft")),
    Row(UNKNOWN_LAYER, native=False),
    Row(UNKNOWN_LAYER, match=r"^(?!layers\.)"),
    *BEHIND_PREFIX[1:],
    Row(LOADS),
)
KREA2_LAYERS = r"^(img_in|final_layer\.linear|time_|txt_in|text_fusion|transformer_blocks)"

LOADERS: tuple[Loader, ...] = (
    Loader(
        "FluxLoraLoaderMixin",
        ("flux1", "chroma", "bria-fibo"),
        ("transformer", "text_encoder"),
        (
            Way(FLUX_COMPONENT, starts=("transformer.",), holds=(".lora_down.weight",), strict=False),
            Way(FLUX_MIXED, starts=("lora_transformer_",), holds=(".lora_down.weight",), strict=False),
            Way(FLUX_FLAT, holds=(".lora_down.weight",), strict=False),
            Way((Row(LOADS, families=("attn-procs",)),), holds=("processor",), strict=False),
            Way((), holds=("query_norm.scale",), strict=False, otherwise=WHOLE_MODEL),
            Way((Row(OTHER_NAMES, native=False),), holds=("base_model",), strict=False, otherwise=WHOLE_MODEL),
            Way(PLAIN_ROWS, holds=(".alpha",), strict=False, patterns=True),
            Way(PLAIN_ROWS, strict=False),
        ),
    ),
    Loader("SD3LoraLoaderMixin", ("sd3",), ("transformer", "text_encoder", "text_encoder_2")),
    Loader("AceStepLoraLoaderMixin", ("ace-step",), ways=(
        Way(
            (
                Row(NO_MODULE, styles=("component", "comfy", "kohya")),
                Row(NO_MODULE, spelt=r"(^|\.)decoder\."),
                *BEHIND_PREFIX,
                Row(LOADS, styles=("peft", "bare"), families=AB),
            ),
            holds=("q_proj", "k_proj"),
        ),
    )),
    Loader("AnimaLoraLoaderMixin", ("anima",), ("transformer", "text_conditioner"), (
        Way(
            (*BEHIND_PREFIX, Row(NOT_A_MODULE, native=False, paths=("transformer_blocks.",)), Row(LOADS, families=AB)),
            starts=("diffusion_model.",),
        ),
    )),
    Loader("AuraFlowLoraLoaderMixin", ("auraflow",)),
    Loader("BriaFibo2LoraLoaderMixin", ("bria-fibo-2",)),
    Loader("CogVideoXLoraLoaderMixin", ("cogvideox",)),
    Loader("CogView4LoraLoaderMixin", ("cogview4",)),
    Loader("CosmosLoraLoaderMixin", ("cosmos",)),
    Loader("ErnieImageLoraLoaderMixin", ("ernie-image",), ways=(
        Way((*BEHIND_PREFIX, Row(LOADS, families=AB)), starts=("base_model.model.", "diffusion_model.")),
    )),
    Loader("Flux2LoraLoaderMixin", ("flux2",), ways=(
        Way(FLUX2_FLAT, holds=(".lora_down.weight",), alpha=True),
        Way(LOKR_DOTTED, holds=(".lokr_",), strict=False, otherwise=unknown("LoKr of fused layers")),
        Way(FLUX2_DOTTED, starts=("base_model.model.", "diffusion_model.")),
    )),
    Loader("Flux3LoraLoaderMixin", ("flux3",), ways=(
        Way((*BEHIND_PREFIX, Row(LOADS, families=AB)), starts=("diffusion_model.",)),
    )),
    Loader("HeliosLoraLoaderMixin", ("helios",), ways=(
        Way(WAN_DOTTED, starts=("diffusion_model.",), every=True, strict=False),
        Way(WAN_FLAT, starts=("lora_unet_",), every=True, strict=False, blocks={"blocks": WAN_BLOCK}),
    )),
    Loader("HiDreamImageLoraLoaderMixin", ("hidream",), ways=(
        Way((*BEHIND_PREFIX, Row(LOADS, families=AB)), starts=("diffusion_model",), every=True),
    )),
    Loader("HunyuanVideoLoraLoaderMixin", ("hunyuan-video", "framepack", "hunyuan-video-1.5"), ways=(
        Way(HUNYUAN, holds=("img_attn_qkv",)),
    )),
    Loader("Ideogram4LoraLoaderMixin", ("ideogram4",), ways=(
        Way(IDEOGRAM, starts=("diffusion_model.", "conditional_transformer."), alpha=True),
        Way(IDEOGRAM, holds=(".attention.qkv.",), alpha=True),
    )),
    Loader("KandinskyLoraLoaderMixin", ("kandinsky5",)),
    Loader("Krea2LoraLoaderMixin", ("krea2",), ways=(
        Way(
            (
                Row(UNKNOWN_LAYER, families=DOWN_UP),
                Row(UNKNOWN_LAYER, native=False),
                Row(UNKNOWN_LAYER, match=KREA2_LAYERS.replace("^", "^(?!", 1) + ")"),
                *BEHIND_PREFIX[1:],
                Row(LOADS, families=AB),
            ),
            starts=("base_model.model.", "diffusion_model."),
        ),
    )),
    Loader("LTXVideoLoraLoaderMixin", ("ltx-video",), ways=(
        Way(
            (*BEHIND_PREFIX, Row(NOT_CONVERTED, renamed=True), Row(LOADS, families=AB)),
            starts=("diffusion_model.",),
            every=True,
        ),
    )),
    Loader("LTX2LoraLoaderMixin", ("ltx2",), ("transformer", "connectors"), (
        Way((*BEHIND_PREFIX, Row(LOADS, styles=OF_COMFY, families=AB)), starts=("diffusion_model.",)),
    )),
    Loader("Lumina2LoraLoaderMixin", ("lumina2",), ways=(
        Way(
            (*BEHIND_PREFIX, Row(OTHER_NAMES, native=False), Row(LOADS, families=AB)),
            starts=("diffusion_model.",),
            every=True,
            blocks=LUMINA_BLOCKS,
        ),
    )),
    Loader("MiniMaxH3LoraLoaderMixin", ("minimax-h3",), ("transformer", "transformer_ref"), (
        Way(
            (
                Row(NO_FACTORS, kinds=KINDS),
                Row(UNKNOWN_LAYER, native=False),
                Row(DORA_SCALE, marks=(".dora_scale",)),
                Row(ALPHA_FREE, marks=("alpha elsewhere",)),
                Row(LOADS, styles=("comfy", "bare", "kohya")),
            ),
            starts=("diffusion_model.", "blocks.", "token_refiner.blocks.", "final_layer.", "lora_unet_"),
            alpha=True,
        ),
        Way((*PLAIN_ROWS, Row(LOADS, styles=("bare",), families=AB)), holds=(".default.weight",)),
    )),
    Loader("Mochi1LoraLoaderMixin", ("mochi",)),
    Loader("QwenImageLoraLoaderMixin", ("qwen-image", "qwen-image-2.1"), ways=(
        Way(QWEN, starts=("lora_unet_", "diffusion_model."), alpha=True),
        Way(QWEN, holds=(".alpha", "default."), alpha=True),
    )),
    Loader("SanaLoraLoaderMixin", ("sana", "sana-video")),
    Loader("SkyReelsV2LoraLoaderMixin", ("skyreels-v2",), ways=(
        Way(WAN_DOTTED, starts=("diffusion_model.",), every=True, strict=False),
        Way(WAN_FLAT, starts=("lora_unet_",), every=True, strict=False, blocks={"blocks": WAN_BLOCK}),
    )),
    Loader("WanLoraLoaderMixin", ("wan2.1", "wan2.2"), ways=(
        Way(WAN_DOTTED, starts=("diffusion_model.",), every=True, strict=False),
        Way(WAN_FLAT, starts=("lora_unet_",), every=True, strict=False, blocks={"blocks": WAN_BLOCK}),
    )),
    Loader("ZImageLoraLoaderMixin", ("z-image",), ways=(
        Way(LOKR_DOTTED, holds=(".lokr_",), strict=False, otherwise=unknown("LoKr under other names")),
        Way(Z_IMAGE, starts=("lora_unet_", "diffusion_model."), alpha=True),
        Way(Z_IMAGE, holds=(".alpha", "default."), alpha=True),
    )),
)  # fmt: skip
BY_ARCHITECTURE: Mapping[str, Loader] = {name: loader for loader in LOADERS for name in loader.architectures}
