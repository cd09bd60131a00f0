"""The ends of keys: which factor of which kind a suffix means, and which suffixes each family writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Suffix(NamedTuple):
    """One row: the text, the role it binds, the kind it speaks for ("" for any), and the family that writes it.

    `after` is what the stem must end with, a number aside: `mlp.down.weight` is a base model's, not a factor;
    `is_scale` marks an alpha that is stored divided by the rank already, `turned` a matrix that is stored transposed.
    """

    text: str
    role: str
    kind: str
    family: str
    after: str = ""
    is_scale: bool = False
    turned: bool = False

    def follows(self, stem: str) -> bool:
        """Whether the stem in front of the suffix is one that it can follow."""
        return stem.rstrip("0123456789").endswith(self.after)


SET_WEIGHT = ".set_weight"
"""ComfyUI's word for a weight that it is to put in the place of the model's."""

BFL_NORM = ".scale"
"""BFL's word for the weight of a norm, which its control adapters hold whole."""

OLD_SET_WEIGHT = BFL_NORM + SET_WEIGHT
"""The same behind BFL's word: what ComfyUI read before February 2026, when it took to calling that weight `weight`."""

_KOHYA = "kohya"
_PEFT = "peft"
_OLD = "diffusers-old"
_PROCESSORS = "attn-procs"
_HCP = "hcp"
_COMFY = "comfy"
_MLX = "mlx"
_GGUF = "gguf"

SUFFIXES: tuple[Suffix, ...] = (
    Suffix(".alpha", "alpha", "", _KOHYA),
    Suffix(".dora_scale", "dora_scale", "", _KOHYA),
    Suffix(".magnitude", "dora_scale", "", _KOHYA),
    Suffix(".lora_down.weight", "down", "lora", _KOHYA),
    Suffix(".lora_up.weight", "up", "lora", _KOHYA),
    Suffix(".lora_mid.weight", "mid", "lora", _KOHYA),
    Suffix(".lora_down", "down", "lora", _KOHYA),
    Suffix(".lora_up", "up", "lora", _KOHYA),
    Suffix(".lora_mid", "mid", "lora", _KOHYA),
    Suffix(".dyn_up", "up", "lora", _KOHYA),
    Suffix(".dyn_down", "down", "lora", _KOHYA),
    Suffix(".bias_indices", "residual_indices", "lora", _KOHYA),
    Suffix(".bias_values", "residual_values", "lora", _KOHYA),
    Suffix(".bias_size", "residual_size", "lora", _KOHYA),
    Suffix(".diff", "diff", "full", _KOHYA),
    Suffix(".diff_b", "bias_diff", "full", _KOHYA),
    Suffix(".w_norm", "norm_diff", "norm", _KOHYA),
    Suffix(".b_norm", "norm_bias_diff", "norm", _KOHYA),
    Suffix(".hada_w1_a", "w1_a", "loha", _KOHYA),
    Suffix(".hada_w1_b", "w1_b", "loha", _KOHYA),
    Suffix(".hada_w2_a", "w2_a", "loha", _KOHYA),
    Suffix(".hada_w2_b", "w2_b", "loha", _KOHYA),
    Suffix(".hada_t1", "t1", "loha", _KOHYA),
    Suffix(".hada_t2", "t2", "loha", _KOHYA),
    Suffix(".lokr_w1", "w1", "lokr", _KOHYA),
    Suffix(".lokr_w1_a", "w1_a", "lokr", _KOHYA),
    Suffix(".lokr_w1_b", "w1_b", "lokr", _KOHYA),
    Suffix(".lokr_w2", "w2", "lokr", _KOHYA),
    Suffix(".lokr_w2_a", "w2_a", "lokr", _KOHYA),
    Suffix(".lokr_w2_b", "w2_b", "lokr", _KOHYA),
    Suffix(".lokr_t2", "t2", "lokr", _KOHYA),
    Suffix(".a1.weight", "a1", "glora", _KOHYA),
    Suffix(".a2.weight", "a2", "glora", _KOHYA),
    Suffix(".b1.weight", "b1", "glora", _KOHYA),
    Suffix(".b2.weight", "b2", "glora", _KOHYA),
    Suffix(".bm.weight", "bm", "glora", _KOHYA),
    Suffix(".oft_blocks", "blocks", "oft", _KOHYA),
    Suffix(".oft_diag", "diagonal", "oft", _KOHYA),
    Suffix(".rescale", "rescale", "oft", _KOHYA),
    Suffix(".on_input", "on_input", "ia3", _KOHYA),
    Suffix(".lora_A.weight", "down", "lora", _PEFT),
    Suffix(".lora_B.weight", "up", "lora", _PEFT),
    Suffix(".lora_B.bias", "up_bias", "lora", _PEFT),
    Suffix(".lora_A", "down", "lora", _PEFT),
    Suffix(".lora_B", "up", "lora", _PEFT),
    Suffix(".lora_E", "singular", "lora", _PEFT),
    Suffix(".lora_embedding_A", "embedding_down", "lora", _PEFT),
    Suffix(".lora_embedding_B", "embedding_up", "lora", _PEFT),
    Suffix(".lora_magnitude_vector", "magnitude", "", _PEFT),
    Suffix(".lora_magnitude_vector.weight", "magnitude", "", _PEFT),
    Suffix(".ia3_l", "scale_vector", "ia3", _PEFT),
    Suffix(".oft_R.weight", "skew", "oft", _PEFT),
    Suffix(".lora.down.weight", "down", "lora", _OLD),
    Suffix(".lora.up.weight", "up", "lora", _OLD),
    Suffix(".lora_linear_layer.down.weight", "down", "lora", _OLD),
    Suffix(".lora_linear_layer.up.weight", "up", "lora", _OLD),
    Suffix(".down.weight", "down", "lora", _PROCESSORS, after="_lora"),
    Suffix(".up.weight", "up", "lora", _PROCESSORS, after="_lora"),
    Suffix(".___.alpha", "alpha", "", _HCP, is_scale=True),
    Suffix(".___.scale", "alpha", "", _HCP, is_scale=True),
    Suffix(".___.layer.W_down", "down", "lora", _HCP),
    Suffix(".___.layer.W_up", "up", "lora", _HCP),
    Suffix(".___.layer.bias", "up_bias", "lora", _HCP),
    Suffix(".___.layer.lora_down.weight", "down", "lora", _HCP),
    Suffix(".___.layer.lora_up.weight", "up", "lora", _HCP),
    Suffix(".___.layer.lora_up.bias", "up_bias", "lora", _HCP),
    Suffix(SET_WEIGHT, "replacement", "full", _COMFY),
    Suffix(OLD_SET_WEIGHT, "replacement", "norm", _COMFY),
    Suffix(".lora_a", "down", "lora", _MLX, turned=True),
    Suffix(".lora_b", "up", "lora", _MLX, turned=True),
    Suffix(".weight.lora_a", "down", "lora", _GGUF),
    Suffix(".weight.lora_b", "up", "lora", _GGUF),
)
# (IA)³ as LyCORIS writes it: bare `.weight`, which means this only beside `.on_input`.
IA3_VECTOR = Suffix(".weight", "scale_vector", "ia3", _KOHYA)
# DoRA's magnitude in MLX, which means this only beside its factors.
MLX_MAGNITUDE = Suffix(".m", "magnitude", "", _MLX)
# A norm's weight, where that is the word for it; `.scale.set_weight` is a norm's anyway.
_OF_NORMS = Suffix(SET_WEIGHT, "replacement", "norm", _COMFY)
# An embedding has its two factors the other way round: its rows are the vocabulary, [vocab, r] and [r, dim] in MLX.
EMBEDDINGS = ("embed_in", "embed_tokens", "token_embd", "word_embeddings", "wte")
_OF_EMBEDDINGS: Mapping[str, Suffix] = {
    ".lora_a": Suffix(".lora_a", "embedding_down", "lora", _MLX, turned=True),
    ".lora_b": Suffix(".lora_b", "embedding_up", "lora", _MLX, turned=True),
    ".weight.lora_a": Suffix(".weight.lora_a", "embedding_down", "lora", _GGUF, turned=True),
    ".weight.lora_b": Suffix(".weight.lora_b", "embedding_up", "lora", _GGUF),
}
BY_TEXT: Mapping[str, Suffix] = {row.text: row for row in SUFFIXES}
# Every end of a suffix from a dot on → the row that it is, None where it only ends longer ones.
_ENDS: Mapping[str, Suffix | None] = {
    row.text[at:]: BY_TEXT.get(row.text[at:]) for row in SUFFIXES for at, sign in enumerate(row.text) if sign == "."
}
# In-memory PEFT keys carry the adapter's name: `.lora_A.default.weight`, and bare parameters end with it. A LoRA's two
# layers are none: `.lora_A.weightx` is no adapter called weightx.
_NAMED = re.compile(
    r"\.(lora_[AB](?=\.[^.]+\.)|lora_embedding_[AB]|lora_magnitude_vector)\.([A-Za-z0-9_-]+)((?:\.weight|\.bias)?)$"
)


class Cut(NamedTuple):
    """A key cut before its suffix; `suffix` is the text as found, `adapter` the name PEFT put inside it."""

    stem: str
    suffix: str
    row: Suffix
    adapter: str | None = None


def cut(key: str) -> Cut | None:
    """Cut a key at its longest known suffix, or None where no suffix is known."""
    longest: Suffix | None = None
    at = len(key)
    while (at := key.rfind(".", 0, at)) > 0 and (end := key[at:]) in _ENDS:
        row = _ENDS[end]
        if row is not None and (not row.after or row.follows(key[:at])):
            longest = row
    if longest is not None:
        stem = key[: -len(longest.text)]
        if longest.text == SET_WEIGHT and "norm" in stem.rpartition(".")[2]:
            longest = _OF_NORMS
        if longest.text in _OF_EMBEDDINGS and stem.rpartition(".")[2] in EMBEDDINGS:
            longest = _OF_EMBEDDINGS[longest.text]
        return Cut(stem, longest.text, longest)
    named = _NAMED.search(key)
    if named and named.start():
        row = BY_TEXT.get(f".{named[1]}{named[3]}")
        if row:
            return Cut(key[: named.start()], named[0], row, named[2])
    return None


def row_of(suffix: str, role: str) -> Suffix | None:
    """The row of a suffix that is written for a role: an embedding's factors are stored the other way round."""
    return (_OF_EMBEDDINGS if role.startswith("embedding_") else BY_TEXT).get(suffix) or BY_TEXT.get(suffix)


def _family(*families: str) -> dict[str, str]:
    """role → the first suffix that the families write for it."""
    found: dict[tuple[str, str], str] = {}
    for family in families:
        for row in SUFFIXES:
            if row.family == family:
                found.setdefault((row.kind, row.role), row.text)
    return {f"{kind}.{role}" if kind else role: text for (kind, role), text in found.items()}


_KOHYA_WRITES = _family(_KOHYA) | {
    "input_magnitude": ".dora_scale", "magnitude": ".dora_scale", "ia3.scale_vector": IA3_VECTOR.text
}  # fmt: skip
_MLX_WRITES = _family(_MLX) | {f"lora.{row.role}": text for text, row in _OF_EMBEDDINGS.items() if row.family == _MLX}
# What each family writes for `kind.role` (or for a role that any kind may have).
WRITTEN: Mapping[str, Mapping[str, str]] = {
    "kohya": _KOHYA_WRITES,
    "comfy": _KOHYA_WRITES | {"full.replacement": SET_WEIGHT, "norm.replacement": SET_WEIGHT},
    "bfl": _KOHYA_WRITES
    | {name: text for name, text in _family(_PEFT).items() if name in ("lora.down", "lora.up", "lora.up_bias")}
    | {"full.replacement": SET_WEIGHT, "norm.replacement": BFL_NORM},
    "peft": _family(_PEFT)
    | {"adalora.down": ".lora_A", "adalora.up": ".lora_B"}  # bare parameters there, two layers in a LoRA
    | {name: text for name, text in _family(_KOHYA).items() if name.startswith(("loha.", "lokr."))},
    "gguf": _family(_GGUF) | {f"lora.{row.role}": text for text, row in _OF_EMBEDDINGS.items() if row.family == _GGUF},
    "hcp": _family(_HCP),
    "mlx": _MLX_WRITES | {"magnitude": MLX_MAGNITUDE.text},
    # bare `.lora_magnitude_vector` is silently wrong in diffusers' text encoders; `.weight` is right everywhere
    "diffusers": _family(_PEFT) | {"magnitude": ".lora_magnitude_vector.weight", "norm.replacement": ".weight"},
}
