"""Files as the world spells them, for pipelines whose noise a transformer removes: each sort by its name."""

from __future__ import annotations

from tests.judges import by_original
from tests.judges.wild import (
    PLAIN_RANKS,
    as_base_model,
    as_diffusion_model,
    diffusers,
    down_up,
    lycoris,
    peft_folder,
    peft_kind,
    with_adapter,
    without_component,
)

ONE_SCALE = ((4, 2),)
KINDS = (
    "locon", "dora", "dora-input", "loha", "lokr", "lokr-whole", "full", "ia3", "ia3-input", "glora", "diag-oft",
    "boft",
)  # fmt: skip


def original(spelling, **how):
    return lambda folder, out, architecture: by_original.make(
        folder, out, architecture=architecture, spelling=spelling, **how
    )


def sorts(component="transformer"):
    """Name → what makes one in (pipeline folder, file, architecture) and gives back the truth."""
    part = {component: None}
    return {
        "diffusers, mixed ranks and alphas": diffusers(part, mixed=True),
        "diffusers, DoRA": diffusers(part, use_dora=True),
        "diffusers, without metadata": diffusers(part, key=str, mixed=True, scales=PLAIN_RANKS),
        "lora_A/lora_B with .alpha": diffusers(part, key=str, alphas=True),
        "lora_A/lora_B without component": diffusers(part, key=without_component),
        "lora_A.default": diffusers(part, key=with_adapter),
        "lora_A/lora_B under base_model.model.": diffusers(part, key=as_base_model),
        "lora_A/lora_B under diffusion_model.": diffusers(part, key=as_diffusion_model),
        "lora_down/lora_up under dotted names": diffusers(part, key=down_up, alphas=True),
        "kohya, diffusers' names": original("kohya, diffusers' names"),
        "kohya under lora_transformer_": original("lora_transformer_"),
        "kohya, one alpha": original("kohya", scales=ONE_SCALE),
        "kohya, mixed alphas": original("kohya"),
        **{name: original(name) for name in by_original.SPELLINGS if name.startswith(("ComfyUI", "original"))},
        "PEFT folder": peft_folder(components=part),
        "PEFT folder, rsLoRA": peft_folder(components=part, use_rslora=True),
        "PEFT folder, DoRA": peft_folder(components=part, use_dora=True),
        "PEFT folder, LoHa": peft_kind("LoHaConfig", component=component, r=4, alpha=8),
        "PEFT folder, LoKr": peft_kind("LoKrConfig", component=component, r=4, alpha=8),
        **{f"LyCORIS {kind}": lycoris(kind) for kind in KINDS},
    }
