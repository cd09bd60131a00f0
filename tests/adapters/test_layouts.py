"""Row layouts act on the weight; every kind's factors follow, or refuse."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratools.adapters.kind import KINDS, kind_of
from loratools.adapters.lora import collapsed
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable, UnsupportedFile
from loratools.model import Alpha, Scale
from tests.adapters.making import lazily, lazy, made, values

ONE = Alpha().scale(None)
CASES = [
    ("lora", ""), ("lora", "conv"), ("lora", "tucker"), ("loha", ""), ("loha", "conv"), ("loha", "tucker"),
    ("lokr", ""), ("lokr", "whole"), ("lokr", "both"), ("lokr", "conv"), ("lokr", "tucker"),
    ("full", ""), ("full", "conv"),
    ("norm", ""), ("ia3", ""), ("ia3", "input"), ("glora", ""), ("oft", ""),
]  # fmt: skip
SIZES = [(4, 8), (4, 4, 4), (2, 2, 8), (12,)]


def weight(kind: str, form: str) -> torch.Tensor:
    if kind == "norm":
        return values(9, 12, dtype=torch.float64)
    return values(9, 12, 6, *((3, 3) if form in ("conv", "tucker") else ()), dtype=torch.float64)


def delta(kind: str, factors, base: torch.Tensor) -> torch.Tensor:
    return kind_of(kind).delta(factors, ONE, base, dtype="float64")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_delta_of_a_part_is_the_part_of_the_delta(kind, form, sizes):
    factors, base = lazily(made(kind, form=form)), weight(kind, form)
    whole = delta(kind, factors, base).split(sizes)
    for part, rows, piece in zip(kind_of(kind).split_rows(factors, sizes), base.split(sizes), whole, strict=True):
        assert torch.allclose(delta(kind, part, rows), piece, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_fuse_undoes_split(kind, form, sizes):
    factors, base = lazily(made(kind, form=form)), weight(kind, form)
    fused = kind_of(kind).fuse_rows(kind_of(kind).split_rows(factors, sizes), sizes)
    assert torch.allclose(delta(kind, fused, base), delta(kind, factors, base), rtol=1e-12, atol=1e-12)
    if form != "tucker" or kind != "loha":
        assert {r: t.tobytes() for r, t in fused.items()} == {r: t.tobytes() for r, t in factors.items()}


@pytest.mark.parametrize(("kind", "form"), [case for case in CASES if case[0] not in ("lokr", "glora", "ia3")])
def test_fused_delta_is_stacked_deltas_and_a_missing_part_changes_nothing(kind, form):
    parts = [lazily(made(kind, seed=1, form=form)), None, lazily(made(kind, seed=2, rank=3, form=form))]
    if kind == "loha" and form == "tucker":
        parts = [parts[0], None, lazily(made(kind, seed=2, rank=3, form=form))]
    one = weight(kind, form)
    base = torch.cat([one, one, one])
    fused = kind_of(kind).fuse_rows(parts, (12, 12, 12))
    kind_of(kind).check(fused)
    found = delta(kind, fused, base).split(12)
    assert torch.allclose(found[0], delta(kind, parts[0], one), rtol=1e-12, atol=1e-12)
    assert not found[1].any()
    assert torch.allclose(found[2], delta(kind, parts[2], one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "form"), [case for case in CASES if case != ("loha", "tucker")])
def test_swapped_halves_swap_the_delta(kind, form):
    factors, base = lazily(made(kind, form=form)), weight(kind, form)
    swapped = delta(kind, kind_of(kind).swap_halves(factors), torch.cat([base[6:], base[:6]]))
    whole = delta(kind, factors, base)
    assert torch.allclose(swapped, torch.cat([whole[6:], whole[:6]]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "form"), [("lora", ""), ("loha", ""), ("lokr", ""), ("lokr", "both"), ("lokr", "whole")]
)
def test_transposed_factors_make_the_transposed_delta(kind, form):
    factors, base = lazily(made(kind, form=form)), weight(kind, form)
    turned = kind_of(kind).transpose(factors)
    assert torch.allclose(delta(kind, turned, base.T), delta(kind, factors, base).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_output_magnitude_follows_rows(kind):
    factors = lazily({**made(kind), "magnitude": values(5, 12, dtype=torch.float32).abs()})
    base = weight(kind, "")
    parts = kind_of(kind).split_rows(factors, (4, 8))
    for part, rows, piece in zip(parts, base.split((4, 8)), delta(kind, factors, base).split((4, 8)), strict=True):
        assert torch.allclose(delta(kind, part, rows), piece, rtol=1e-12, atol=1e-12)
    assert kind_of(kind).fuse_rows(parts, (4, 8))["magnitude"].same_bytes(factors["magnitude"])
    with pytest.raises(NotRepresentable, match="magnitude"):
        kind_of(kind).fuse_rows([parts[0], None], (4, 8))


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_input_magnitude_cannot_be_split_or_fused_but_swaps(kind):
    factors = lazily({**made(kind), "input_magnitude": values(5, 6, dtype=torch.float32).abs()})
    with pytest.raises(NotRepresentable, match="input-axis"):
        kind_of(kind).split_rows(factors, (4, 8))
    with pytest.raises(NotRepresentable, match="input-axis"):
        kind_of(kind).fuse_rows([factors, factors], (12, 12))
    base = weight(kind, "")
    found = delta(kind, kind_of(kind).swap_halves(factors), torch.cat([base[6:], base[:6]]))
    whole = delta(kind, factors, base)
    assert torch.allclose(found, torch.cat([whole[6:], whole[:6]]), rtol=1e-10, atol=1e-10)


def test_transposed_dora_exchanges_its_magnitudes():
    factors = lazily({**made("lora"), "magnitude": values(5, 12, dtype=torch.float32).abs()})
    base = weight("lora", "")
    turned = kind_of("lora").transpose(factors)
    assert "input_magnitude" in turned
    assert torch.allclose(delta("lora", turned, base.T), delta("lora", factors, base).T, rtol=1e-10, atol=1e-10)


def test_what_a_kind_cannot_follow_is_refused():
    refused = [
        lambda: kind_of("boft").split_rows(lazily(made("boft")), (4, 8)),
        lambda: kind_of("boft").swap_halves(lazily(made("boft"))),
        lambda: kind_of("oft").split_rows(lazily(made("oft")), (3, 9)),
        lambda: kind_of("lokr").split_rows(lazily(made("lokr")), (3, 9)),
        lambda: kind_of("lokr").fuse_rows([lazily(made("lokr", seed=s)) for s in (1, 2)], (12, 12)),
        lambda: kind_of("glora").fuse_rows([lazily(made("glora", seed=s)) for s in (1, 2)], (12, 12)),
        lambda: kind_of("ia3").fuse_rows([lazily(made("ia3", form="input", seed=s)) for s in (1, 2)], (12, 12)),
        lambda: kind_of("ia3").delta(lazily(made("ia3")), ONE),
        lambda: kind_of("oft").delta({"skew": lazy(values(1, 3, 6))}, ONE, torch.ones(12, 12)),
    ]
    for attempt in refused:
        with pytest.raises(NotRepresentable):
            attempt()


def test_lokr_splits_inside_one_row_of_the_first_factor():
    factors = lazily({"w1": values(1, 1, 2, dtype=torch.float32), "w2": values(2, 12, 3, dtype=torch.float32)})
    base = weight("lokr", "")
    whole = delta("lokr", factors, base).split((5, 7))
    parts = kind_of("lokr").split_rows(factors, (5, 7))
    for part, rows, piece in zip(parts, base.split((5, 7)), whole, strict=True):
        assert torch.equal(delta("lokr", part, rows), piece)
    again = kind_of("lokr").fuse_rows(parts, (5, 7))
    assert all(again[role].same_bytes(tensor) for role, tensor in factors.items())


def test_old_glora_layout_is_told_by_its_shapes():
    new = made("glora")
    old = {"a1": new["a2"], "a2": new["a1"], "b1": new["b2"], "b2": new["b1"]}
    base, kind = weight("glora", ""), kind_of("glora")
    kind.check(lazily(old))
    assert kind.rank(lazily(old)) == 2
    assert kind.weight_shape(lazily(old)) == (12, 6)
    assert torch.equal(delta("glora", lazily(old), base), delta("glora", lazily(new), base))


def test_collapsed_tucker_core_makes_the_same_delta():
    factors = lazily(made("lora", form="tucker"))
    plain = collapsed(factors)
    assert set(plain) == {"down", "up"}
    assert plain["down"].shape == (2, 6, 3, 3)
    base = weight("lora", "tucker")
    assert torch.allclose(delta("lora", plain, base), delta("lora", factors, base), rtol=1e-5, atol=1e-5)


def test_biases_are_scaled_where_the_format_scales_them():
    factors = lazily({**made("lora"), "up_bias": values(3, 12), "bias_diff": values(4, 12)})
    found = kind_of("lora").bias_delta(factors, Scale(Fraction(3)), dtype="float64")
    expected = values(3, 12).double() * 3 + values(4, 12).double()
    assert torch.equal(found, expected)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lora_fuse_is_stacked_deltas_for_any_ranks_and_sizes(data):
    count = data.draw(st.integers(2, 4))
    sizes = [data.draw(st.integers(1, 5)) for _ in range(count)]
    parts = [
        None
        if index and data.draw(st.booleans())
        else lazily(made("lora", seed=index, rows=size, columns=4, rank=data.draw(st.integers(1, 3))))
        for index, size in enumerate(sizes)
    ]
    fused = kind_of("lora").fuse_rows(parts, sizes)
    found = kind_of("lora").delta(fused, ONE, dtype="float64").split(sizes)
    for part, piece in zip(parts, found, strict=True):
        if part is None:
            assert not piece.any()
        else:
            assert torch.allclose(piece, kind_of("lora").delta(part, ONE, dtype="float64"), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("lora", {"down": (2, 5)}),
        ("lora", {"down": (2, 5), "up": (6, 3)}),
        ("lora", {"down": (0, 5), "up": (6, 0)}),
        ("lora", {"down": (5,), "up": (6, 1)}),
        ("lora", {"down": (2, 5, 1, 1), "up": (6, 2, 1, 1), "mid": (2, 3, 3, 3)}),
        ("lora", {"down": (2, 5), "up": (6, 2), "magnitude": (5,)}),
        ("loha", {"w1_a": (6, 2), "w1_b": (2, 5), "w2_a": (6, 2)}),
        ("loha", {"w1_a": (6, 2), "w1_b": (2, 5), "w2_a": (6, 2), "w2_b": (2, 4)}),
        ("lokr", {"w1": (2, 2)}),
        ("lokr", {"w1": (2, 2), "w1_a": (2, 1), "w2": (3, 3)}),
        ("lokr", {"w1": (2, 2), "w2_a": (3, 2), "w2_b": (1, 3)}),
        ("full", {"diff": (6, 5), "bias_diff": (5,)}),
        ("norm", {"norm_diff": (0,)}),
        ("ia3", {"on_input": ()}),
        ("glora", {"a1": (5, 2), "a2": (2, 5), "b1": (6, 3), "b2": (2, 5)}),
        ("oft", {"blocks": (3, 2, 4)}),
        ("oft", {"skew": (3, 4)}),
        ("boft", {"blocks": (2, 3, 4, 4), "rescale": (11,)}),
    ],
)
def test_factors_that_make_no_adapter_are_refused_with_evidence(kind, factors):
    held = lazily({role: torch.zeros(shape) for role, shape in factors.items()})
    with pytest.raises(IncompleteAdapter) as caught:
        kind_of(kind).check(held, "stem")
    assert caught.value.key == "stem"
    assert {"expected", "found"} <= caught.value.evidence.keys()


def test_every_kind_accepts_what_it_makes_and_says_its_shape():
    for kind, form in [*CASES, ("boft", "")]:
        factors = lazily(made(kind, form=form))
        kind_of(kind).check(factors)
        assert kind_of(kind).identify(factors)
        shape = kind_of(kind).weight_shape(factors)
        assert shape[0] in (None, 12)
    assert [kind.name for kind in KINDS] == sorted(kind.name for kind in KINDS)
    with pytest.raises(UnsupportedFile, match="lohaa"):
        kind_of("lohaa")


def test_rows_that_do_not_add_up_are_refused():
    with pytest.raises(ArchitectureMismatch) as caught:
        kind_of("lora").split_rows(lazily(made("lora")), (4, 7))
    assert (caught.value.evidence["expected"], caught.value.evidence["found"]) == (11, 12)


def test_no_layout_imports_torch():
    import subprocess
    import sys

    program = """
import sys
from loratools.adapters.kind import kind_of
from loratools.tensors.lazy import LazyTensor
f = {"down": LazyTensor.zeros("F16", (2, 5)), "up": LazyTensor.zeros("F16", (6, 2))}
k = kind_of("lora"); k.check(f); k.swap_halves(f)
parts = k.split_rows(f, (2, 4)); k.fuse_rows([*parts, None], (2, 4, 3))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
