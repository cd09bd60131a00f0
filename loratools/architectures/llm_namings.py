"""How the layers of language models are named: experts one by one or stacked, projections apart or fused.

Canonical is the finest spelling, `mlp.experts.3.gate_proj` and `self_attn.q_proj`. Checkpoints, older versions of
transformers and vLLM name one linear layer an expert; transformers 5 holds all experts of a layer as one parameter
[experts, out, in], the gate's rows over the up projection's. Phi 3 and GLM 4 have one layer for gate and up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import gcd
from typing import Literal, NamedTuple

from loratools.architectures.naming import Placement

Experts = Literal["each", "mixtral", "stacked"]
Switch = Literal["", "switch", "switch-rows"]
"""Whether MLX' one layer for all experts stands for those of a layer, with factors of three dimensions or of two."""

GATE_UP, DOWN = "gate_up_proj", "down_proj"
STACKED = (GATE_UP, DOWN)
"""The parameters of stacked experts, in the order in which transformers' classes have them."""

EXPERTS, SWITCH = "experts", "switch_mlp"
FUSED_QKV, ATTENTION_OUT = "self_attn.qkv_proj", "self_attn.o_proj"

_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}  # Mixtral's own words
_MIXTRAL_WORDS = {ours: theirs for theirs, ours in _MIXTRAL.items()}
PARTS = ("q_proj", "k_proj", "v_proj")
"""What a fused attention layer is made of, in its order."""

_EXPERT = re.compile(r"(?P<head>(?:.*\.)?experts\.)(?P<number>\d+)\.(?P<leaf>\w+)")
_OWN_EXPERT = re.compile(r"(?P<head>(?:.*\.)?)block_sparse_moe\.experts\.(?P<number>\d+)\.(?P<leaf>w[123])")
_SWITCH = re.compile(r"(?P<head>(?:.*\.)?)switch_mlp\.(?P<leaf>gate_proj|up_proj|down_proj)")
_ROUTER = re.compile(r"(?P<head>(?:.*\.)?)block_sparse_moe\.gate")


class LanguageNaming(NamedTuple):
    """One spelling of all layers of a language model.

    `experts` says how those of a mixture are named ("mixtral" is "each" in Mixtral's own words), `gate_up` that gate
    and up are one layer, `qkv` the shares of the rows of a layer that is query, key and value (none where they are
    three), `switched` that the experts of a layer stand together as in MLX.
    """

    experts: Experts = "each"
    gate_up: bool = False
    qkv: tuple[int, ...] = ()
    switched: Switch = ""

    @property
    def name(self) -> str:
        """How a recorded spelling calls it: "" for canonical names, else such as `stacked` or `gate_up qkv=4:1:1`."""
        words = [self.experts] * (self.experts != "each") + ["gate_up"] * self.gate_up
        words += [self.switched] * bool(self.switched)
        return " ".join([*words, *([f"qkv={':'.join(map(str, self.qkv))}"] if self.qkv else [])])

    @classmethod
    def named(cls, name: str) -> LanguageNaming | None:
        """The naming of such a name, None for any other."""
        found = cls()
        for word in name.split():
            if word in ("mixtral", "stacked"):
                found = found._replace(experts="stacked" if word == "stacked" else "mixtral")
            elif word in ("switch", "switch-rows"):
                found = found._replace(switched="switch" if word == "switch" else "switch-rows")
            elif word == "gate_up":
                found = found._replace(gate_up=True)
            elif re.fullmatch(r"qkv=[1-9]\d{0,8}(:[1-9]\d{0,8}){2}", word):
                found = found._replace(qkv=tuple(map(int, word.removeprefix("qkv=").split(":"))))
            else:
                return None
        return found

    def at_canonical(self, path: str) -> Placement:
        """The placement of the layer that holds a canonical path; any other path is its own."""
        head, _, leaf = path.rpartition(".")
        expert = _EXPERT.fullmatch(path)
        if expert is not None:
            return self._expert(path, expert["head"], expert["number"], leaf)
        if self.experts == "mixtral" and path.endswith("mlp.gate"):
            return Placement(f"{path.removesuffix('mlp.gate')}block_sparse_moe.gate", (path,), (1,), "rows")
        if self.gate_up and leaf in ("gate_proj", "up_proj") and head.endswith("mlp"):
            return _gate_up(head)
        if self.qkv and leaf in PARTS and head.endswith("self_attn"):
            return Placement(f"{head}.qkv_proj", tuple(f"{head}.{part}" for part in PARTS), self.qkv, "rows")
        return Placement(path, (path,), (1,), "rows")

    def _expert(self, path: str, head: str, number: str, leaf: str) -> Placement:
        if self.experts == "stacked" and leaf in ("gate_proj", "up_proj"):
            return _gate_up(f"{head}{number}")
        if self.experts == "mixtral" and leaf in _MIXTRAL_WORDS and head.endswith("mlp.experts."):
            root = head.removesuffix("mlp.experts.")
            native = f"{root}block_sparse_moe.experts.{number}.{_MIXTRAL_WORDS[leaf]}"
            return Placement(native, (path,), (1,), "rows")
        return Placement(path, (path,), (1,), "rows")


def _gate_up(head: str) -> Placement:
    return Placement(f"{head}.{GATE_UP}", (f"{head}.gate_proj", f"{head}.up_proj"), (1, 1), "rows")


def canonical(native: str, qkv: tuple[int, ...] = ()) -> Placement:
    """The canonical paths of a layer under any of its names; a fused qkv is one path where its shares are not known."""
    head, _, leaf = native.rpartition(".")
    own = _OWN_EXPERT.fullmatch(native)
    if own is not None:
        path = f"{own['head']}mlp.experts.{own['number']}.{_MIXTRAL[own['leaf']]}"
        return Placement(native, (path,), (1,), "rows")
    router = _ROUTER.fullmatch(native)
    if router is not None:
        return Placement(native, (f"{router['head']}mlp.gate",), (1,), "rows")
    if leaf == GATE_UP and (head.endswith("mlp") or _EXPERT.fullmatch(native)):
        return _gate_up(head)
    if leaf == "qkv_proj" and qkv and head.endswith("self_attn"):
        return Placement(native, tuple(f"{head}.{part}" for part in PARTS), qkv, "rows")
    return Placement(native, (native,), (1,), "rows")


def naming_of(natives: Iterable[str], qkv: tuple[int, ...] = ()) -> LanguageNaming:
    """The naming in which layers of these names are, but for stacked experts, which are no layers."""
    found = LanguageNaming()
    for native in natives:
        placement = canonical(native, qkv)
        if native.endswith(f"mlp.{GATE_UP}"):
            found = found._replace(gate_up=True)
        elif len(placement.paths) == len(PARTS):
            found = found._replace(qkv=placement.ratio)
        elif "block_sparse_moe." in native and placement.paths != (native,):
            found = found._replace(experts="mixtral")
    return found


def shares(whole: int, attended: int) -> tuple[int, ...]:
    """The ratio of q, k and v in a fused layer of `whole` rows, where o_proj takes `attended` inputs: as many as q has.

    None of it (an empty tuple) where the rest is no two of one size.
    """
    rest, odd = divmod(whole - attended, 2)
    if odd or rest <= 0:
        return ()
    unit = gcd(attended, rest)
    return attended // unit, rest // unit, rest // unit


def stacked_name(path: str) -> str | None:
    """The parameter that holds the layer of one expert: `mlp.experts.gate_up_proj` for `mlp.experts.3.gate_up_proj`."""
    found = _EXPERT.fullmatch(path)
    return f"{found['head']}{found['leaf']}" if found else None


def expert_of_switch(native: str, number: int) -> str | None:
    """One expert's layer under checkpoints' name for it, of MLX' layer of all: `…mlp.switch_mlp.up_proj`; else None."""
    found = _SWITCH.fullmatch(native)
    if found is None:
        return None
    leaf = _MIXTRAL_WORDS[found["leaf"]] if found["head"].endswith("block_sparse_moe.") else found["leaf"]
    return f"{found['head']}{EXPERTS}.{number}.{leaf}"


def switch_name(path: str, *, mixtral: bool) -> str | None:
    """MLX' layer of all experts, which a canonical path of one is a part of; None for any other path."""
    found = _EXPERT.fullmatch(path)
    head = found["head"].removesuffix(f"{EXPERTS}.") if found else ""
    if found is None or found["leaf"] not in _MIXTRAL_WORDS:
        return None
    if mixtral and head.endswith("mlp."):
        head = f"{head.removesuffix('mlp.')}block_sparse_moe."
    return f"{head}{SWITCH}.{found['leaf']}"


def number_of(path: str) -> int:
    """The number of the expert that a layer belongs to."""
    found = _EXPERT.fullmatch(path)
    if found is None:
        raise ValueError(f"{path} is no expert's")
    return int(found["number"])
