"""Every class of proof can be reached, and every one fails when a bit is wrong."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from loratools.adapters.proof import clusters, prove
from loratools.adapters.recast import fold, recast
from loratools.adapters.regroup import regroup
from loratools.errors import IncompleteAdapter, NonFinite
from loratools.model import Alpha, Target
from loratools.tensors.lazy import LazyTensor
from tests.adapters.making import adapter, dense, lazy, lora, made, values

QKV = ("q", "k", "v")


def together(component: str, path: str) -> Target:
    return Target(component, QKV, (1, 1, 1)) if path in QKV else Target(component, (path,))


def flipped(item, role: str, byte: int = 0):
    """The same adapter with one bit of a factor flipped."""
    tensor = item.factors[role]
    data = bytearray(tensor.tobytes())
    data[byte] ^= 1
    return replace(item, factors={**item.factors, role: LazyTensor.from_bytes(tensor.dtype, tensor.shape, bytes(data))})


def test_equal_bytes_and_scales_are_identical():
    one, other = lora("q", 1, alpha=3), lora("q", 1, alpha=3)
    assert prove([one], [other]) == prove([one], [one])
    assert (prove([one], [other]).kind, prove([one], [other]).error) == ("identical", 0)


def test_one_by_one_convolution_is_identical_to_the_linear_layer():
    one = lora("q", 1)
    four = {role: t.reshape(*t.shape, 1, 1) for role, t in one.factors.items()}
    assert prove([one], [replace(one, factors=four)]).kind == "identical"
    assert prove([flipped(one, "up")], [replace(one, factors=four)]).kind == "measured"


@pytest.mark.parametrize("role", ["down", "up"])
def test_one_flipped_bit_is_seen(role):
    one = lora("q", 1, alpha=3)
    found = prove([one], [flipped(one, role)])
    assert found.kind == "measured"
    assert 0 < found.error < 0.01


def test_alpha_off_by_one_ulp_is_seen():
    one = lora("q", 1, alpha=3)
    near = Fraction(math.nextafter(3.0, 4.0))
    found = prove([one], [replace(one, alpha=Alpha(near))])
    assert found.kind == "measured"
    assert prove([one], [replace(one, alpha=Alpha(Fraction(3)))]).kind == "identical"
    assert prove([replace(one, alpha=Alpha(Fraction(2)))], [replace(one, alpha=Alpha())]).kind == "identical"


def test_slices_and_shares_are_identical():
    one = lora(QKV, 1, rows=9, alpha=1)
    parts = regroup([one], lambda component, path: Target(component, (path,))).adapters
    assert prove([one], parts).kind == "identical"
    assert prove(parts, [one]).kind == "identical"
    assert prove([one], [parts[0], flipped(parts[1], "up"), parts[2]]).kind == "measured"


def test_blocks_are_exact_in_both_directions():
    parts = [lora("q", 1, rank=2, alpha=4), lora("k", 3, rank=3, alpha=6), lora("v", 5, rank=1, alpha=2)]
    whole = regroup(parts, together).adapters
    assert (prove(parts, whole).kind, prove(parts, whole).error) == ("exact", 0)
    assert prove(whole, parts).kind == "exact"
    for byte in range(0, whole[0].factors["up"].nbytes, 7):
        assert prove(parts, [flipped(whole[0], "up", byte)]).kind == "measured"
    for byte in range(0, whole[0].factors["down"].nbytes, 7):
        assert prove(parts, [flipped(whole[0], "down", byte)]).kind == "measured"


def test_dropped_column_is_seen():
    one = lora("q", 1, rank=3, alpha=3)
    less = {"down": one.factors["down"].rows(0, 2), "up": one.factors["up"].columns(0, 2)}
    found = prove([one], [replace(one, factors=less, alpha=Alpha(Fraction(2)))])
    assert found.kind == "measured"
    assert found.error > 0.1


def test_tucker_block_is_exact():
    one = adapter("q", made("lora", form="tucker"))
    parts = [one, adapter("k", made("lora", seed=3, form="tucker"))]
    pair = Target("unet", ("q", "k"), (1, 1))
    whole = regroup(parts, lambda *_: pair).adapters
    assert prove(parts, whole).kind == "exact"
    assert prove(parts, [flipped(whole[0], "mid", 40)]).kind == "measured"


def test_missing_and_zero_parts_are_exact():
    parts = [lora("q", 1), lora("v", 3)]
    whole = regroup(parts, together).adapters
    assert prove(parts, whole).kind == "exact"
    untrained = [*parts, lora("k", 5, up=torch.zeros(6, 2, dtype=torch.float16))]
    assert prove(untrained, whole).kind == "exact"
    assert prove(untrained[2:], []).kind == "exact"


def test_path_on_one_side_only_is_infinitely_wrong():
    parts = [lora("q", 1), lora("k", 3), lora("v", 5)]
    whole = regroup(parts[:2], together).adapters
    assert prove(parts, whole).error == pytest.approx(1)
    assert prove([lora(QKV, 1, rows=9)], [lora("q", 1, rows=3), lora("v", 3, rows=3)]).error == math.inf
    assert prove(parts[:1], []).error == math.inf
    assert prove([], parts[:1]).error == math.inf


@pytest.mark.parametrize("alpha", [Fraction(1), Fraction(8), Fraction(-4)])
def test_power_of_two_folds_are_exact(alpha):
    one = lora("q", 1, alpha=alpha, dtype=torch.bfloat16)
    found = fold(one)
    assert found.alpha.value is None
    assert found.factors["up"].dtype == "BF16"
    assert (prove([one], [found]).kind, prove([one], [found]).error) == ("exact", 0)
    assert prove([one], [flipped(found, "up")]).kind == "measured"
    assert prove([one], [replace(found, alpha=Alpha(Fraction(math.nextafter(2.0, 3.0))))]).kind == "measured"


def test_other_folds_are_measured_at_float32():
    one = lora("q", 1, alpha=3)
    assert fold(one).factors["up"].dtype == "F32"
    found = prove([one], [fold(lora("q", 1, alpha=Fraction(1, 3)))])
    assert found.kind == "measured"
    good = prove([lora("q", 1, alpha=Fraction(1, 3))], [fold(lora("q", 1, alpha=Fraction(1, 3)))])
    assert good.kind == "measured"
    assert 0 < good.error < 1e-7


def test_scaled_bias_must_follow_a_fold():
    one = lora("q", 1, alpha=4, up_bias=values(8, 6))
    assert prove([one], [fold(one)]).kind == "exact"
    forgotten = replace(fold(one), factors={**fold(one).factors, "up_bias": one.factors["up_bias"]})
    assert prove([one], [forgotten]).error == pytest.approx(0.5)


def test_wider_dtype_is_exact_and_narrower_is_measured():
    one = lora("q", 1, alpha=3)
    assert prove([one], [recast(one, "F32")]).kind == "exact"
    found = prove([lora("q", 1, dtype=torch.float32)], [recast(lora("q", 1, dtype=torch.float32), "BF16")])
    assert found.kind == "measured"
    assert 1e-4 < found.error < 1e-2


def test_recast_that_overflows_is_refused():
    big = recast(lora("q", 1, up=torch.full((6, 2), 1e5, dtype=torch.float32)), "F16")
    with pytest.raises(NonFinite) as caught:
        big.factors["up"].load()
    assert caught.value.key == "q.up"


def test_refused_layouts_are_measured_dense():
    one = adapter(QKV, made("lokr", rows=12), "lokr", ratio=(1, 1, 2))
    bad = adapter(
        QKV,
        {"w1": values(1, 3, 2, dtype=torch.float32), "w2": values(2, 4, 3, dtype=torch.float32)},
        "lokr",
        ratio=(1, 1, 4),
    )
    from loratools.adapters.kind import delta_of

    for item in (one, bad):
        delta, sizes = delta_of(item, dtype="float64"), item.target.sizes(12)
        parts = [adapter(p, {"diff": d}, "full") for p, d in zip(QKV, delta.split(sizes), strict=True)]
        found = prove([item], parts)
        assert found.kind == "measured"
        assert found.error < 1e-12
        parts[1] = adapter("k", {"diff": delta.split(sizes)[1] * 1.5}, "full")
        assert prove([item], parts).error == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["ia3", "oft", "boft", "glora", "loha", "lokr", "full", "norm"])
def test_every_kind_is_identical_to_itself_and_to_nothing_else(kind):
    one = adapter("q", made(kind), kind, alpha=Fraction(1, 8))
    assert prove([one], [adapter("q", made(kind), kind, alpha=Fraction(1, 8))]).kind == "identical"
    role = next(iter(one.factors))
    assert prove([one], [flipped(one, role)]).kind == "measured"
    if kind in ("oft", "boft", "glora", "loha", "lokr"):
        other = prove([one], [replace(one, alpha=Alpha(Fraction(1, 16)))])
        assert other.kind == "measured"
        assert other.error > 0.01


def test_magnitude_that_differs_is_seen():
    one = lora("q", 1, magnitude=values(8, 6))
    assert prove([one], [flipped(one, "magnitude")]).kind == "measured"
    assert prove([one], [lora("q", 1)]).error == 1


def test_clusters_join_what_shares_paths():
    source = [lora("q", 1), lora("k", 3), lora("v", 5), lora("o", 7), lora("q", 9, ratio=(1,))]
    source[4] = replace(source[4], target=source[4].target._replace(component="text_encoder"))
    output = [lora(QKV, 1, rows=18), lora("x", 3)]
    found = clusters(source, output)
    assert [([a.target.paths for a in ours], [b.target.paths for b in theirs]) for ours, theirs in found] == [
        ([("q",), ("k",), ("v",)], [QKV]),
        ([("o",)], []),
        ([("q",)], []),
        ([], [("x",)]),
    ]


def test_path_covered_twice_is_no_proof():
    with pytest.raises(IncompleteAdapter):
        prove([lora(QKV, 1, rows=9), lora("k", 3, rows=3)], [lora(QKV, 1, rows=9)])


def test_measured_error_is_that_of_the_dense_deltas():
    one, other = lora("q", 1, alpha=3), lora("q", 3, rank=4, alpha=1)
    expected = float(torch.linalg.vector_norm(dense(one) - dense(other)) / torch.linalg.vector_norm(dense(one)))
    assert prove([one], [other]).error == pytest.approx(expected, rel=1e-10)
    assert prove([one], [replace(other, factors={r: lazy(t.load()) for r, t in other.factors.items()})]).error > 0


def test_identical_proof_needs_no_torch():
    program = """
import sys
from loratools.adapters.adapter import Adapter
from loratools.adapters.proof import clusters, prove
from loratools.adapters.regroup import regroup
from loratools.model import Target
from loratools.tensors.lazy import LazyTensor
f = {"down": LazyTensor.from_bytes("F16", (1, 2), b"abcd"), "up": LazyTensor.from_bytes("F16", (2, 1), b"efgh")}
one = Adapter(Target("unet", ("q", "k"), (1, 1)), "lora", f)
parts = regroup([one], lambda component, path: Target(component, (path,))).adapters
assert [prove(*pair).kind for pair in clusters([one], parts)] == ["identical"]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
