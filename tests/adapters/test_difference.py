"""Differences from the factors against dense float64 norms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratools.adapters import difference as module
from loratools.adapters.difference import difference
from loratools.errors import ArchitectureMismatch, NonFinite, NotRepresentable, ResourceError
from tests.adapters.making import adapter, dense, lora, made, values


def norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_norms_are_those_of_the_dense_deltas(rows, columns, ranks, seed):
    items = [lora("q", seed + 7 * i, rows=rows, columns=columns, rank=r, alpha=i + 1) for i, r in enumerate(ranks)]
    a, b = items[:1], items[1:]
    left, right = dense(a[0]), sum(dense(item) for item in b)
    found = difference(a, b)
    assert found.norm_a == pytest.approx(norm(left), rel=1e-10)
    assert found.norm_b == pytest.approx(norm(right), rel=1e-10)
    assert found.distance == pytest.approx(norm(left - right), rel=1e-8, abs=1e-12)
    assert found.relative_error == pytest.approx(norm(left - right) / norm(left), rel=1e-8, abs=1e-12)
    assert found.cosine == pytest.approx(float((left * right).sum()) / (norm(left) * norm(right)), abs=1e-9)


def test_small_errors_are_seen_far_below_float32():
    one = lora("q", 1, rows=40, columns=30, rank=4, dtype=torch.float64)
    up = one.factors["up"].load() * (1 + 1e-12)
    other = adapter("q", {"down": one.factors["down"], "up": up})
    assert difference([one], [other]).relative_error == pytest.approx(1e-12, rel=1e-2)


def test_tucker_is_compared_with_its_collapsed_form():
    from loratools.adapters.lora import collapsed

    one = adapter("q", made("lora", form="tucker"), alpha=3)
    other = adapter("q", collapsed(one.factors), alpha=3)
    found = difference([one], [other])
    assert 0 <= found.relative_error < 1e-6
    assert found.norm_a > 0


@pytest.mark.parametrize(("kind", "form"), [("loha", ""), ("loha", "tucker"), ("lokr", ""), ("full", ""), ("norm", "")])
def test_other_kinds_are_compared_dense(kind, form):
    a, b = (adapter("q", made(kind, seed, form=form), kind) for seed in (1, 2))
    assert difference([a], [a]).relative_error == 0
    assert difference([a], [b]).relative_error > 0.1


@pytest.mark.parametrize("kind", ["ia3", "glora", "oft", "boft"])
def test_kinds_that_multiply_the_base_are_compared_with_it_or_by_factor(kind):
    base = values(5, 12, 6, dtype=torch.float64)
    a, b = (adapter("q", made(kind, seed), kind) for seed in (1, 2))
    for known in (None, base):
        assert difference([a], [a], known).relative_error == 0
        assert difference([a], [b], known).relative_error > 0.1
    with pytest.raises(NotRepresentable, match="base"):
        difference([a], [lora("q", rows=12, columns=6)])


def test_a_lora_can_be_compared_with_the_full_difference_it_makes():
    one = lora("q", 1, alpha=3)
    assert difference([one], [adapter("q", {"diff": dense(one)}, "full")]).relative_error < 1e-14


def test_zeros():
    zero = lora("q", up=torch.zeros(6, 2))
    one = lora("q", 1)
    assert difference([zero], [zero]).relative_error == 0
    assert difference([], []).relative_error == 0
    assert difference([zero], [one]).relative_error == math.inf
    assert difference([one], [zero]).relative_error == 1
    assert difference([zero], [zero]).cosine == 1


@pytest.mark.parametrize("role", ["up_bias", "bias_diff", "magnitude"])
def test_biases_and_magnitudes_are_part_of_the_error(role):
    a = lora("q", 1, **{role: values(8, 6).abs()})
    b = lora("q", 1, **{role: values(8, 6).abs() * 2})
    assert difference([a], [a]).relative_error < 1e-14
    assert difference([a], [b]).relative_error == pytest.approx(1)
    assert difference([a], [lora("q", 1)]).relative_error == 1
    assert difference([lora("q", 1)], [a]).relative_error == math.inf


def test_dora_is_compared_through_the_base_where_it_is_given():
    base = values(5, 6, 5, dtype=torch.float64)
    a, b = lora("q", 1, magnitude=values(8, 6).abs()), lora("q", 1, magnitude=values(9, 6).abs())
    assert difference([a], [a], base).relative_error == 0
    assert difference([a], [b], base).relative_error > 0.1


def test_numbers_that_are_not_finite_are_named_by_key():
    bad = values(2, 6, 2)
    bad[3, 1] = math.nan
    with pytest.raises(NonFinite) as caught:
        difference([lora("q", 1, up=bad)], [lora("q", 1)])
    assert caught.value.key == "q.up"


def test_deltas_of_different_shapes_are_refused():
    with pytest.raises(ArchitectureMismatch):
        difference([lora("q")], [lora("q", rows=7)])


def test_dense_deltas_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "DENSE_LIMIT", 71)
    one = adapter("q", made("loha"), "loha")
    with pytest.raises(ResourceError, match="72 elements"):
        difference([one], [one])
