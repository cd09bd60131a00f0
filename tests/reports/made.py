"""Evidence made up for the tests of reports: small pictures, every status, every sort of row."""

import numpy as np

from loratools.reports.evidence import (
    Control,
    Evidence,
    Figure,
    Law,
    ModuleRow,
    Noise,
    Panel,
    Route,
    Scene,
)
from loratools.reports.metrics import measure


def picture(seed, side=64, height=None):
    """A smooth picture with some grain, uint8 [height, side, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : height or side, 0:side] / side
    waves = [np.sin((3 + at + seed % 3) * x + (2 + at) * y * (1 + seed % 2) + at) for at in range(3)]
    grain = random.normal(0, 6, (height or side, side, 3))
    return np.clip(128 + 90 * np.stack(waves, axis=2) + grain, 0, 255).astype(np.uint8)


def nudged(pixels, steps=1, share=0.02, seed=0):
    """A picture of which a share of the values is `steps` off."""
    random = np.random.default_rng(seed)
    mask = random.random(pixels.shape) < share
    return np.clip(pixels.astype(int) + mask * steps, 0, 255).astype(np.uint8)


def latent(value, limit=1e-5, floor=9.4e-7):
    return Figure("latent error", value, limit=limit, floor=floor)


def scene(prompt="a lighthouse in the fog", seed=0, side=64, height=None):
    reference = picture(seed + 1, side, height)
    others = {
        "merged": nudged(reference, seed=seed),
        "converted: peft": reference,
        "extracted": nudged(reference, share=0.2, seed=seed),
        "loaded": nudged(reference, steps=40, share=0.5, seed=seed),
    }
    statuses = {"loaded": "differs"}
    errors = {"merged": 1.1e-6, "converted: peft": 0.0, "extracted": 3.2e-6, "loaded": 0.083}
    base = picture(seed + 2, side, height)
    return Scene(
        prompt,
        seed,
        (
            Panel("base", "info", base, measure(base, reference)),
            Panel("reference", "info", reference),
            *(
                Panel(route, statuses.get(route, "pass"), pixels, (latent(errors[route]), *measure(pixels, reference)))
                for route, pixels in others.items()
            ),
            Panel(
                "loaded: LoHa", "refused", None, remarks=("ValueError: Make sure all LoRA param names contain 'lora'",)
            ),
        ),
    )


def evidence(scenes=None, **changes):
    given = {
        "title": "style.safetensors at 0.8 on tiny-sdxl",
        "verdict": "pass",
        "summary": "Merged, converted and extracted, the adapter makes the same pictures as the file itself: the "
        "largest latent error is 3.2e-6, the limit is 1e-5, and rounding alone gives 9.4e-7.",
        "facts": {
            "pipeline": "tiny-sdxl (StableDiffusionXLPipeline)",
            "adapters": "style.safetensors at 0.8",
            "run": "2 prompts, 4 steps, guidance 5, 64 × 64, euler, float32 on cpu",
            "effect": "the adapter changes the latents by 27 %, 27,000 times the tolerance",
        },
        "routes": (
            Route(
                "merged",
                "pass",
                (
                    Figure("module error", 3e-8, limit=1e-4),
                    latent(1.1e-6),
                    Figure("PSNR", 71.2, better="high", unit="dB"),
                ),
                "a pipeline rebuilt from merged weights",
                seconds=1.93,
                peak_bytes=612_000_000,
            ),
            Route(
                "converted: peft",
                "pass",
                (
                    Figure("module error", 0.0, limit=1e-4),
                    latent(0.0),
                    Figure("PSNR", float("inf"), better="high", unit="dB"),
                ),
                "the file, converted to peft, and injected",
                seconds=1.2,
            ),
            Route(
                "extracted",
                "pass",
                (
                    Figure("module error", 4.1e-6, limit=1e-4),
                    latent(3.2e-6),
                    Figure("PSNR", 60.1, better="high", unit="dB"),
                ),
                "merged − base, by singular value decomposition, applied again",
                seconds=2.5,
            ),
            Route(
                "loaded",
                "differs",
                (
                    Figure("module error", 1.0, limit=1e-4),
                    latent(0.083),
                    Figure("PSNR", 21.0, better="high", unit="dB"),
                ),
                "diffusers' own load_lora_weights",
                ("184 of 986 modules are scaled by 0.5 to 2: alpha differs per module, and diffusers keeps one",),
                tuple(f"unet:down_blocks.1.attentions.0.transformer_blocks.{at}.attn1.to_q" for at in range(184)),
                seconds=0.8,
                decides=False,
            ),
        ),
        "scenes": (scene(), scene("a fox asleep in the snow, studio light, " * 4, 7)) if scenes is None else scenes,
        "modules": tuple(
            ModuleRow(
                "unet",
                f"down_blocks.1.attentions.0.transformer_blocks.{at}.attn1.to_q",
                "loaded" if at < 3 else "extracted",
                1.0 if at < 3 else 4.1e-6 / at,
                0.31,
                2.0 if at < 3 else 1.0,
                1e-4,
            )
            for at in range(60)
        ),
        "noise": (
            Noise("the same run twice", (Figure("latent error", 0.0), Figure("largest", 0, unit="of 255"))),
            Noise(
                "the same change by another route",
                (Figure("latent error", 9.4e-7), Figure("largest", 1, unit="of 255")),
            ),
        ),
        "controls": (
            Control(
                "smallest module left out",
                True,
                (latent(5.7e-4),),
                "unet mid_block …attn2.to_k",
                ("modules", "latents"),
            ),
            Control("scale off by 1 %", True, (latent(5.5e-3),), visible_in=("modules", "latents", "images")),
            Control("q and k swapped", False, (latent(3.5e-6),), visible_in=()),
        ),
        "laws": (
            Law("scale 0 is the base", "pass", (Figure("latent error", 0.0, limit=0.0),), "bit for bit"),
            Law("linear in the scale", "pass", (Figure("module error", 2e-7, limit=1e-5),)),
        ),
        "repeat": "loratools validate tiny-sdxl style.safetensors=0.8 --prompt 'a lighthouse in the fog' --steps 4",
        "versions": {"loratools": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        "hashes": {"style.safetensors": "0f" * 32, "tiny-sdxl/unet/diffusion_pytorch_model.safetensors": "a7" * 32},
        "document": {"schema": "loratools.validate/1", "verdict": "pass"},
    }
    return Evidence(**{**given, **changes})
