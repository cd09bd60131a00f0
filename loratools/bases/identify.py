"""What a file that is no adapter is: a base model, a VAE, a ControlNet or an embedding, from its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from loratools.architectures import control_lora
from loratools.architectures.llm import architecture_id, model_types
from loratools.architectures.naming import skeleton
from loratools.architectures.registry import ARCHITECTURES, without_heirs
from loratools.bases.companions import VAE_PREFIXES, companion
from loratools.bases.matching import Match, Part, Shape, matches

Role = Literal["base", "vae", "controlnet", "embedding"]
Shapes = Mapping[str, Shape | None]

# A table that explains fewer of the keys than this is another model's; more misfits and the shapes say nothing.
EXPLAINED, MISFITTING = 0.9, 0.1

VAE_TOPS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "bn")
# latent channels → the architectures with such a VAE
VAES = {4: ("sd1", "sd2", "sdxl", "sdxl-refiner"), 16: ("flux1", "sd3"), 32: ("flux2",)}

CONTROL_PREFIX = "control_model."
CONTROL_TOPS = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_blocks", "controlnet_x_embedder")

# key of an embedding for one text encoder → the architectures that have that encoder
ENCODER_EMBEDDINGS = {
    "clip_l": ("flux1", "sd3", "sdxl"),
    "clip_g": ("sd3", "sdxl", "sdxl-refiner"),
    "t5": ("flux1", "sd3"),
    "clip_l_out": ("flux1", "sd3", "sdxl"),
    "clip_g_out": ("sd3", "sdxl", "sdxl-refiner"),
}
# width of an embedding that does not say its encoder → architectures
EMBEDDING_WIDTHS = {768: ("sd1",), 1024: ("sd2",), 1280: ("sdxl",)}
EMBEDDING_TENSORS = 32

# What names a factor of an adapter somewhere in a key.
ADAPTER_WORDS = frozenset(
    ("lora", "lokr", "hada", "oft", "boft", "ia3", "dora", "lycoris", "alpha", "diff", "processor", "magnitude")
)


@dataclass(frozen=True, slots=True)
class Identity:
    """The answer. `candidates` are every architecture that fits, none where no table knows the model.

    `components` tell how each component is spelt; `unmatched` are the keys that nothing explains; `format` is the word
    for a ControlNet that is stored in factors.
    """

    role: Role
    candidates: tuple[str, ...] = ()
    components: Mapping[str, Part] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    format: str | None = None


def identify(sizes: Shapes) -> Identity | None:
    """What a file with these keys and shapes is; None for an adapter, or for nothing that we know."""
    return _identify(tuple(sizes.items()))


@lru_cache(maxsize=16)
def _identify(held: tuple[tuple[str, tuple[int, ...] | None], ...]) -> Identity | None:
    sizes = dict(held)
    if not sizes:
        return None
    return _embedding(sizes) or _controlnet(sizes) or _vae(sizes) or _base(sizes) or _llm(sizes) or _unknown(sizes)


def _registered(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(known.id for known in ARCHITECTURES if known.id in names)


def _embedding(sizes: Shapes) -> Identity | None:
    """Learned tokens: one [n, width] or [width] tensor an encoder, under a key of its own."""
    if len(sizes) > EMBEDDING_TENSORS:
        return None
    fits = {known.id for known in ARCHITECTURES}
    for key, size in sizes.items():
        if key.startswith("string_to_token"):
            continue  # the number of the token, in A1111's and CompVis' pickles
        if size is None or not 1 <= len(size) <= 2:
            return None
        if key in ENCODER_EMBEDDINGS:
            fits &= set(ENCODER_EMBEDDINGS[key])
        elif key == "emb_params" or key.startswith("string_to_param") or not set(".:") & set(key):
            if size[-1] not in EMBEDDING_WIDTHS:
                return None
            fits &= set(EMBEDDING_WIDTHS[size[-1]])
        else:
            return None
    return Identity("embedding", _registered(tuple(fits)))


def _controlnet(sizes: Shapes) -> Identity | None:
    """A copy of the denoiser's first half with zero convolutions behind it."""
    if control_lora.MARK in sizes:
        sizes = control_lora.weights_of(sizes)
        found = _first_named(_fitting(matches(sizes, prefix="")))
        ids = tuple(match.architecture.id for match in found)
        return Identity("controlnet", ids, found[0].parts if found else {}, format=control_lora.FORMAT)
    if all(key.startswith(CONTROL_PREFIX) for key in sizes):
        prefix = CONTROL_PREFIX
    elif {key.partition(".")[0] for key in sizes} & set(CONTROL_TOPS):
        prefix = ""
    else:
        return None
    found = _first_named(_fitting(matches(sizes, prefix=prefix)))
    return Identity("controlnet", tuple(match.architecture.id for match in found), found[0].parts if found else {})


def _vae(sizes: Shapes) -> Identity | None:
    """An autoencoder on its own, under LDM's or diffusers' names, with or without its prefix."""
    prefix = next((prefix for prefix in VAE_PREFIXES if all(key.startswith(prefix) for key in sizes)), "")
    bare = {key.removeprefix(prefix): size for key, size in sizes.items()}
    first = bare.get("decoder.conv_in.weight", ())
    if "decoder.conv_in.weight" not in bare or {key.partition(".")[0] for key in bare} - set(VAE_TOPS):
        return None
    return Identity("vae", _registered(VAES.get(first[1], ())) if first and len(first) > 1 else ())


def _fitting(found: list[Match]) -> list[Match]:
    """The matches that place the most keys and, where shapes tell anything, have the fewest misfits."""
    most = max((match.placed for match in found), default=0)
    found = [match for match in found if match.placed == most]
    fewest = min((len(match.misfits) for match in found), default=0)
    if fewest <= MISFITTING * most:
        found = [match for match in found if len(match.misfits) == fewest]
    return found


def _first_named(found: list[Match]) -> list[Match]:
    """The matches of architectures that none of the others has its names and sizes from."""
    return without_heirs([match.architecture for match in found], found)


def _base(sizes: Shapes) -> Identity | None:
    """A base model, or one component of it, of an architecture in the tables."""
    own = {key: size for key, size in sizes.items() if companion(key) is None}
    found = _fitting(matches(own))
    if not found or found[0].placed < EXPLAINED * len(own):
        return None
    if len(found[0].misfits) > MISFITTING * found[0].placed:
        # Unknown sizes: a tiny or custom model if it has everything and nothing else, and another model if not.
        found = [match for match in found if match.placed == len(own) and match.is_whole]
        if not found:
            return None
    found = _first_named(found)
    parts = found[0].parts
    placed = {key for part in parts.values() for key in part.keys}
    denoisers = any(match.architecture.denoiser.name in match.parts for match in found)
    # A text encoder alone may be a language model that nobody paints with: Qwen 3 is Anima's.
    language = () if denoisers else _language_models(sizes)
    return Identity(
        "base",
        (*language, *(match.architecture.id for match in found)),
        parts,
        tuple(key for key in own if key not in placed),
        found[0].variants if len(found) == 1 and not language else (),
        found[0].misfits,
    )


def _language_models(sizes: Shapes) -> tuple[str, ...]:
    """The ids of the language models that have exactly these modules, each of them."""
    paths = {key.removesuffix(".weight") for key in sizes if companion(key) in (None, "tied")}
    return tuple(map(architecture_id, model_types(paths, complete=True)))


def _llm(sizes: Shapes) -> Identity | None:
    """A language model, or one shard of it."""
    paths = {key.removesuffix(".weight") for key in sizes if companion(key) in (None, "tied")}
    types = model_types(paths, complete=True) or model_types(paths)
    return Identity("base", tuple(map(architecture_id, types))) if types else None


def _unknown(sizes: Shapes) -> Identity | None:
    """A model that no table knows: repeated layers of plain weights, and no factor of an adapter."""
    layers: set[tuple[int, ...]] = set()
    for key in sizes:
        words, numbers = skeleton(key)
        if ADAPTER_WORDS & set(words) or key.startswith("base_model."):
            return None
        layers.add(numbers[:1])
    plain = sum(key.endswith((".weight", ".bias", ".scale")) for key in sizes)
    if plain < EXPLAINED * len(sizes) or len(layers) < 3:
        return None
    return Identity("base", unmatched=tuple(key for key in sizes if companion(key) is None))
