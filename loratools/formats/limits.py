"""What a format can hold exactly, and what has to hold for a whole component at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loratools.adapters.adapter import Adapter
from loratools.adapters.settings import tuner_of
from loratools.errors import NotRepresentable
from loratools.formats.alpha_tensor import plain
from loratools.formats.diffusers import loads_norm
from loratools.formats.format import Format
from loratools.tensors.lazy import LazyTensor

_RESIDUAL = {
    "residual_values": "has no place for a sparse residual (bias_values)",
    "residual_indices": "has no place for a sparse residual (bias_indices)",
}
# where alpha stands → role → why a format of that sort cannot hold it
_NO_PLACE = {
    "tensor": {
        "skew": "has no place for PEFT's rotation of the inputs (oft_R)",
        "embedding_down": "has no place for an embedding's factors",
        "up_bias": "has no place for a bias of the up factor (lora_B.bias) at another scale than 1: --alpha fold",
    },
    "config": {
        "bias_diff": "has no place for a difference of the bias (diff_b)",
        "input_magnitude": "knows DoRA on the output axis only; this one is normalised over the outputs of each input",
        "mid": "has no place for a Tucker core (lora_mid)",
        **_RESIDUAL,
    },
}
# the same, by format: what its sort says does not hold for it, and what its reader lacks beyond that
_OWN_PLACES: Mapping[str, Mapping[str, str | None]] = {
    "bfl": {**_RESIDUAL, "up_bias": None},
    "comfy": _RESIDUAL,
    "diffusers": {
        "norm_diff": "has no place for a difference of a norm (w_norm), only for a norm whole",
        "norm_bias_diff": "has no place for a difference of a norm's bias (b_norm)",
    },
    "kohya": {
        "replacement": "has no place for a weight that is put in the model's place (control adapters' norms): comfy has"
    },
    "gguf": {
        "singular": "has no place for AdaLoRA's singular values (lora_E)",
        "up_bias": "has no place for a bias of the up factor (lora_B.bias)",
        "magnitude": "has no DoRA",
    },
    "mlx": {
        "singular": "has no place for AdaLoRA's singular values (lora_E)",
        "up_bias": "has no place for a bias of the up factor (lora_B.bias)",
    },
    "hcp": {
        "up_bias": None,
        "bias_diff": "has no place for a difference of the bias (diff_b)",
        "magnitude": "has no DoRA",
        "input_magnitude": "has no DoRA",
        "mid": "has no place for a Tucker core (lora_mid)",
        **_RESIDUAL,
    },
}


def holdable(adapters: Sequence[Adapter], form: Format, *, allow_lossy: bool) -> tuple[list[Adapter], list[str]]:
    """The adapters that the format can hold, and the names of those it cannot, where that is allowed."""
    kept: list[Adapter] = []
    lost: list[str] = []
    main = _main_kinds(adapters) if form.alpha == "config" else {}
    for item in adapters:
        reason = refusal(item, form)
        kind = tuner_of(item.kind, item.factors)
        wanted = main.get(item.target.component, kind)
        if reason is None and kind != wanted:
            reason = f"{form.id} has no place for {kind} beside {wanted}: one configuration holds one kind"
        if reason is None:
            kept.append(item)
        elif allow_lossy:
            lost.append(f"{item.target.name}: {reason}")
        else:
            raise NotRepresentable(
                f"{item.target.name}: {reason}",
                key=item.origin.stem if item.origin else None,
                path=item.origin.file if item.origin else None,
                hint=f"--allow-lossy leaves such layers out and lists them; {_elsewhere(form)}",
            )
    if not kept:
        raise NotRepresentable(f"{form.id} can hold none of the layers", hint=_elsewhere(form))
    return kept, lost


def _elsewhere(form: Format) -> str:
    """Where to look for a format that holds more."""
    return "loratools formats lists what each holds" if form.id == "kohya" else "--to kohya holds most kinds"


def _main_kinds(adapters: Sequence[Adapter]) -> dict[str, str]:
    """component → the kind of most of its layers, LoRA before others of the same number."""
    found: dict[str, Counter[str]] = {}
    for item in adapters:
        found.setdefault(item.target.component, Counter())[tuner_of(item.kind, item.factors)] += 1
    return {name: max(counts, key=lambda kind: (counts[kind], kind == "lora")) for name, counts in found.items()}


def refusal(item: Adapter, form: Format) -> str | None:
    """Why a format cannot hold an adapter exactly, or None."""
    if item.kind not in form.kinds:
        return f"{form.id} has no place for {item.kind}"
    if form.id == "diffusers" and item.kind == "norm" and not loads_norm(item.target):
        return f"{form.id} puts norms of queries and keys in their place, and no others"
    if "singular" in item.factors and form.id not in ("gguf", "mlx"):
        return _beside_singular_values(item, form)
    if item.kind == "oft" and form.alpha == "config":
        return _not_pefts_rotation(item, form)
    if item.kind == "ia3" and "on_input" not in item.factors and form.alpha == "tensor":
        return f"{form.id} needs to be told which axis the vector scales, and this file does not say"
    if item.kind == "ia3" and form.alpha == "config" and "on_input" in item.factors:
        # PEFT multiplies the outputs with the bias among them, LyCORIS without; and it stores 1 + v, which is rounded.
        return f"{form.id} reads (IA)³ of PEFT's own only: LyCORIS' vector is another, and leaves the bias alone"
    if item.kind in ("loha", "lokr") and form.alpha == "config" and "magnitude" in item.factors:
        return f"{form.id} has no DoRA of a {item.kind}"
    if form.recorded:
        return None  # its suffixes say what it held
    for role in item.factors:
        sort = _NO_PLACE["tensor" if form.alpha == "tensor" else "config"]
        reason = _OWN_PLACES.get(form.id, {}).get(role, sort.get(role))
        if reason:
            return f"{form.id} {reason}"
    return None


def _not_pefts_rotation(item: Adapter, form: Format) -> str | None:
    """Why a configuration cannot speak of a rotation: PEFT's own turn the inputs, in a form that it states."""
    if "skew" not in item.factors:
        return f"{form.id} has no place for a rotation of the outputs; PEFT's own turns the inputs (oft_R)"
    if "num_cayley_neumann_terms" not in item.settings:
        return f"{form.id} needs OFT's form of rotation, which stands in a configuration only, and here is none"
    return None


def _beside_singular_values(item: Adapter, form: Format) -> str | None:
    """Why a format cannot hold an AdaLoRA: PEFT alone has them, and of two matrices with a configuration."""
    if form.alpha != "config":
        return f"{form.id} has no place for AdaLoRA's singular values (lora_E)"
    if "init_r" not in item.settings:
        return f"{form.id} needs AdaLoRA's init_r, which stands in a configuration only, and here is none"
    other = next((role for role in item.factors if role not in ("down", "up", "singular")), None)
    return None if other is None else f"{form.id} has no place for {other} beside AdaLoRA's singular values"


def uniform(members: list[Adapter], component: str) -> list[Adapter]:
    """One configuration speaks for a whole component: DoRA, biases and rsLoRA must be everywhere or nowhere."""
    layers = [item for item in members if item.kind != "norm"]
    with_magnitude = [item for item in layers if "magnitude" in item.factors]
    if with_magnitude and len(with_magnitude) < len(layers):
        bare = next(item for item in layers if "magnitude" not in item.factors)
        raise NotRepresentable(
            f"{component}: {len(with_magnitude)} of {len(layers)} layers are DoRA; this format holds all or none",
            key=bare.origin.stem if bare.origin else None,
            path=bare.origin.file if bare.origin else None,
            hint="the others need a magnitude, the row norms of base + delta, which this file does not hold",
        )
    if any("up_bias" in item.factors for item in members):
        members = [_with_bias(item) for item in members]
    if any(item.alpha.rank_stabilized for item in members) and not all(item.alpha.rank_stabilized for item in members):
        members = [replace(item, alpha=plain(item)) for item in members]
    return members


def _with_bias(item: Adapter) -> Adapter:
    """The same adapter with a bias, of zeros where it had none: exact."""
    if "up_bias" in item.factors or "up" not in item.factors:
        return item
    up = item.factors["up"]
    return replace(item, factors={**item.factors, "up_bias": LazyTensor.zeros(up.dtype, (up.shape[0],))})
