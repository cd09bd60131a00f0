"""Which table reads the adapters of each model class behind a LoRA loader of diffusers, or why none does."""

from __future__ import annotations

from typing import NamedTuple


class Denoiser(NamedTuple):
    """A model class of diffusers; `architectures` are the ids that its adapters may be read as, `note` says what those
    leave out, or why there are none.
    """

    name: str
    architectures: tuple[str, ...] = ()
    note: str = ""


DENOISERS: tuple[Denoiser, ...] = (
    Denoiser("AceStepTransformer1DModel", ("ace-step",)),
    Denoiser("AnimaTextConditioner", ("anima",)),
    Denoiser("AnyFlowFARTransformer3DModel", ("wan2.1",), "without what embeds its step lengths and far frames"),
    Denoiser("AnyFlowTransformer3DModel", ("wan2.1",), "without what embeds its step lengths"),
    Denoiser("AuraFlowTransformer2DModel", ("auraflow",)),
    Denoiser("BriaFibo2Transformer2DModel", ("bria-fibo-2",)),
    Denoiser("BriaFiboTransformer2DModel", ("bria-fibo",)),
    Denoiser("ChromaTransformer2DModel", ("chroma",)),
    Denoiser("ChronoEditTransformer3DModel", ("wan2.1",)),
    Denoiser("CogVideoXTransformer3DModel", ("cogvideox",)),
    Denoiser("CogView4Transformer2DModel", ("cogview4",)),
    Denoiser("ConsisIDTransformer3DModel", ("cogvideox",), "without what looks at the face"),
    Denoiser("CosmosTransformer3DModel", ("cosmos", "anima")),
    Denoiser("ErnieImageTransformer2DModel", ("ernie-image",)),
    Denoiser("Flux2Transformer2DModel", ("flux2",)),
    Denoiser("Flux3Transformer2DModel", ("flux3",)),
    Denoiser("FluxTransformer2DModel", ("flux1",)),
    Denoiser("HeliosTransformer3DModel", ("helios",)),
    Denoiser("HiDreamImageTransformer2DModel", ("hidream",)),
    Denoiser("HunyuanVideo15Transformer3DModel", ("hunyuan-video-1.5",)),
    Denoiser("HunyuanVideoFramepackTransformer3DModel", ("framepack",)),
    Denoiser("HunyuanVideoTransformer3DModel", ("hunyuan-video",)),
    Denoiser("Ideogram4Transformer2DModel", ("ideogram4",)),
    Denoiser("Kandinsky3UNet", note="Kandinsky 3: no trainer writes adapters of it"),
    Denoiser("Kandinsky5Transformer3DModel", ("kandinsky5",)),
    Denoiser("Krea2Transformer2DModel", ("krea2",)),
    Denoiser("LTX2TextConnectors", ("ltx2",)),
    Denoiser("LTX2VideoTransformer3DModel", ("ltx2",)),
    Denoiser("LTXVideoTransformer3DModel", ("ltx-video",)),
    Denoiser("Lumina2Transformer2DModel", ("lumina2",)),
    Denoiser("MiniMaxH3Transformer3DModel", ("minimax-h3",)),
    Denoiser("MochiTransformer3DModel", ("mochi",)),
    Denoiser("PRXTransformer2DModel", note="PRX: its pipeline inherits a loader for a UNet, which it has not"),
    Denoiser("PriorTransformer", ("kandinsky2.2",), "of its sizes; unCLIP's loader fills the UNet alone"),
    Denoiser("QwenImage21Transformer2DModel", ("qwen-image-2.1",)),
    Denoiser("QwenImageTransformer2DModel", ("qwen-image",)),
    Denoiser("RFD4ProteinaTransformer", note="a model of proteins, of neither pictures nor sound"),
    Denoiser("SD3Transformer2DModel", ("sd3",)),
    Denoiser("SanaTransformer2DModel", ("sana",)),
    Denoiser("SanaVideoTransformer3DModel", ("sana-video",)),
    Denoiser("SkyReelsV2Transformer3DModel", ("skyreels-v2",)),
    Denoiser("UNet2DConditionModel", ("sd1", "sd2", "sdxl", "sdxl-refiner"), "of their sizes; DeepFloyd IF's differ"),
    Denoiser("UNet3DConditionModel", note="ModelScope's text to video: no trainer writes adapters of it today"),
    Denoiser("UNetControlNetXSModel", ("sd1", "sd2", "sdxl"), "the UNet in it, not the ControlNet"),
    Denoiser("UNetMotionModel", ("animatediff", "sd1", "sdxl")),
    Denoiser("UVit2DModel", note="aMUSEd: no pipeline inherits the loader that there is for it"),
    Denoiser("WanAnimate2Transformer3DModel", note="Wan Animate 2: no trainer writes adapters of it"),
    Denoiser("WanAnimateTransformer3DModel", ("wan2.1",), "without what looks at faces and poses"),
    Denoiser("WanTransformer3DModel", ("wan2.1", "wan2.2")),
    Denoiser("WanVACETransformer3DModel", ("wan2.1", "wan2.2"), "without the blocks for its conditions"),
    Denoiser("WuerstchenPrior", ("wuerstchen",)),
    Denoiser("ZImageTransformer2DModel", ("z-image",)),
)  # fmt: skip
