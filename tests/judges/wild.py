"""Files as the world spells them: each sort by its name, made by third parties for a tiny pipeline, with its truth."""

from __future__ import annotations

import json

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.judges import by_kohya, by_lycoris, by_peft
from tests.judges.fresh import fresh
from tests.judges.truth import Truth, place, spread, weights

TEXT_LEVEL = "encoder.text_model."
METADATA = "lora_adapter_metadata"
UNET = {"unet": None}
BOTH = {**UNET, "text_encoder": None}
ALL = {**BOTH, "text_encoder_2": None}
TEXT = {"text_encoder": None}
PLAIN_RANKS = ((4, 4), (2, 2), (6, 6), (3, 3))
"""(rank, alpha) of files that have no place for alpha."""


def kohya(components=BOTH, **how):
    def make(folder, out, architecture):
        return by_kohya.make(folder, out, architecture=architecture, components=components, **{"most": 24, **how})

    return make


def lycoris(kind):
    return lambda folder, out, architecture: by_lycoris.make(folder, out, kind, architecture=architecture)


def diffusers(components=BOTH, *, key=None, alphas=False, metadata=None, **how):
    """diffusers' own file, its keys renamed; its metadata changed by `metadata`, else dropped (all scales are 1)."""

    def make(folder, out, architecture):
        truth = by_peft.make(
            folder, out, architecture=architecture, components=components, **{"most": 24, "mixed": False, **how}
        )
        if key is None and metadata is None and not alphas:
            return truth
        with safe_open(out, "pt") as file:
            stored = json.loads(file.metadata()[METADATA])
        held = {(key or str)(name): value for name, value in load_file(out).items()}
        if alphas:
            ends = (".lora_A.weight", ".lora_down.weight")
            stems = [name.removesuffix(end) for name in held for end in ends if name.endswith(end)]
            held |= {f"{stem}.alpha": torch.tensor(4.0) for stem in stems}
        said = {METADATA: json.dumps(metadata(stored))} if metadata else {}
        out.unlink()
        save_file(held, out, metadata={"format": "pt", **said})
        return truth

    return make


def rewritten(make, *, without=None, key=str, metadata=None):
    """What `make` makes, without the tensors that `without` picks, renamed, and with other metadata."""

    def made(folder, out, architecture):
        truth = make(folder, out, architecture)
        held = load_file(out)
        out.unlink()
        kept = {key(name): value for name, value in held.items() if not (without and without(name, value))}
        save_file(kept, out, metadata={"format": "pt", **(metadata or {})})
        return truth

    return made


def peft_folder(*, most=24, components=UNET, **how):
    """A PEFT folder of what removes the noise."""

    def make(folder, out, architecture):
        return by_peft.make(
            folder,
            out.with_suffix(""),
            architecture=architecture,
            container="peft",
            components=components,
            most=most,
            **how,
        )

    return make


def peft_kind(name, *, component="unet", **options):
    """A PEFT folder of another kind (LoHaConfig, LoKrConfig); the truth is peft's own merge."""

    def make(folder, out, architecture):
        import peft

        model = fresh(folder)
        model = getattr(model, component)
        names = spread(list(weights(model)), 24)
        wrapped = peft.get_peft_model(model, getattr(peft, name)(target_modules=names, **options))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        wrapped.save_pretrained(str(out.with_suffix("")))
        # A name fits every path that ends with it, too.
        held = [path for path, part in model.named_modules() if hasattr(part, "base_layer")]
        before = {path: model.get_submodule(path).base_layer.weight.detach().double().clone() for path in held}
        merged = wrapped.double().merge_and_unload()
        deltas = {
            place(component, path): merged.get_submodule(path).weight.detach() - weight
            for path, weight in before.items()
        }
        return Truth(out.with_suffix(""), architecture, deltas)

    return make


def kohya_by_diffusers(**how):
    """What diffusers' own helper makes of its file: kohya's words, diffusers' module names, alpha = rank."""

    def make(folder, out, architecture):
        truth = by_peft.make(folder, out, architecture=architecture, components=BOTH, most=60, **how)
        held = convert_state_dict_to_kohya(load_file(out))
        out.unlink()
        save_file({key: value.float().contiguous() for key, value in held.items()}, out)
        return truth

    return make


def where(*parts):
    return lambda path: any(part in path for part in parts)


def without_component(name):
    component, _, path = name.partition(".")
    return path if component in ("unet", "transformer", "prior", "text_encoder") else name


def as_base_model(name):
    return f"base_model.model.{without_component(name)}"


def with_adapter(name):
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


def down_up(name):
    return name.replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up.")


def attention_old(name):
    """As diffusers' own helper writes a UNet: attention by the old names, all else by the new."""
    if not (name.startswith("unet.") and (".attn1." in name or ".attn2." in name)):
        return name
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def processors(name):
    """diffusers before 0.17: attention processors, and the text encoder in the same words."""
    for new, old in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out.0", "to_out"),
                     ("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):  # fmt: skip
        for factor, end in (("lora_A", "down"), ("lora_B", "up")):
            if name.endswith(f".{new}.{factor}.weight"):
                middle = ".processor." if name.startswith("unet.") else "."
                stem = name.removesuffix(f".{new}.{factor}.weight").replace("encoder.encoder.", f"{TEXT_LEVEL}encoder.")
                return f"{stem}{middle}{old}_lora.{end}.weight"
    raise AssertionError(name)


def bare_magnitude(name):
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def as_diffusion_model(name):
    return f"diffusion_model.{without_component(name)}"


def as_transformer(name):
    return name.replace("lora_unet_", "lora_transformer_")


ATTENTION = {"unet": where("attn1.", "attn2."), "text_encoder": where("self_attn")}

SORTS = {
    "diffusers, mixed ranks and alphas": diffusers(mixed=True),
    "diffusers, DoRA": diffusers(use_dora=True),
    "diffusers, without metadata": diffusers(key=str, mixed=True, scales=PLAIN_RANKS),
    "diffusers, old and new names in one file": diffusers(key=attention_old, most=60),
    "attention processors": diffusers(ATTENTION, key=processors),
    "attention processors, without component": diffusers(
        {"unet": ATTENTION["unet"]}, key=lambda name: without_component(processors(name))
    ),
    "lora_A/lora_B with .alpha": diffusers(key=str, alphas=True),
    "lora_A/lora_B without component": diffusers(UNET, key=without_component),
    "lora_A.default": diffusers(UNET, key=with_adapter),
    "lora_A/lora_B under base_model.model.": diffusers(UNET, key=as_base_model),
    "lora_A/lora_B under diffusion_model.": diffusers(UNET, key=as_diffusion_model),
    "lora_down/lora_up under dotted names": diffusers(key=down_up, alphas=True),
    "kohya, one alpha": kohya(scales=((4, 2),)),
    "kohya, one alpha, float16": kohya(scales=((4, 2),), dtype=torch.float16),
    "kohya, mixed alphas": kohya(most=60),
    "kohya, text encoder with mixed alphas": kohya(TEXT, most=None),
    "kohya, text encoder without out_proj": kohya(
        {"text_encoder": where("q_proj", "v_proj", "fc1")}, most=None, scales=((4, 2),)
    ),
    "kohya by diffusers' helper, one rank": kohya_by_diffusers(scales=((4, 4),)),
    "kohya by diffusers' helper, mixed ranks": kohya_by_diffusers(scales=PLAIN_RANKS),
    "kohya under lora_transformer_": rewritten(kohya(UNET, scales=((4, 2),)), key=as_transformer),
    "PEFT folder": peft_folder(),
    "PEFT folder, rsLoRA": peft_folder(use_rslora=True),
    "PEFT folder, DoRA": peft_folder(use_dora=True),
    "PEFT folder, LoHa": peft_kind("LoHaConfig", r=4, alpha=8),
    "PEFT folder, LoKr": peft_kind("LoKrConfig", r=4, alpha=8),
    **{f"LyCORIS {kind}": lycoris(kind) for kind in by_lycoris.KINDS},
}
"""Name → what makes one in (pipeline folder, file, architecture) and gives back the truth; for UNets with a CLIP."""
