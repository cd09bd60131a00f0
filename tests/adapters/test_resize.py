"""Resizing by the factors' QR cores against a full SVD of the dense delta."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratools.adapters.kind import delta_of
from loratools.adapters.resize import resize
from loratools.errors import NotRepresentable, UsageError
from tests.adapters.making import adapter, dense, lora, made, values


def norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double().reshape(-1)))


@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_resized_delta_is_the_truncated_svd_of_the_dense_one(rows, columns, rank, wanted, seed):
    item = lora("q", seed, rows=rows, columns=columns, rank=rank, alpha=3, dtype=torch.float64)
    delta = dense(item)
    left, singular, right = torch.linalg.svd(delta, full_matrices=False)
    kept = min(wanted, rank, len(singular))
    best = left[:, :kept] * singular[:kept] @ right[:kept]
    found = resize(item, rank=wanted)
    ours = delta_of(found.adapter, dtype="float64")
    assert norm(ours - best) <= 1e-9 * norm(delta)
    assert found.error == pytest.approx(norm(delta - ours) / norm(delta), rel=1e-3, abs=1e-12)
    assert found.exact == (wanted >= rank)
    if not found.exact:
        up, down = (found.adapter.factors[role].load() for role in ("up", "down"))
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-9)
        assert float(found.adapter.scale) == 1


@pytest.mark.parametrize(("wish", "limit"), [({"error": 0.3}, 0.3), ({"energy": 0.9}, 0.1**0.5), ({"energy": 1}, 0)])
def test_an_error_or_an_energy_is_kept_by_the_smallest_rank(wish, limit):
    item = lora("q", 3, rows=20, columns=16, rank=10, dtype=torch.float64)
    found = resize(item, **wish)
    singular = torch.linalg.svdvals(dense(item))[:10]
    tails = [norm(singular[rank:]) / norm(singular) for rank in range(11)]
    assert tails[found.rank] <= limit * (1 + 1e-9) < tails[found.rank - 1]
    assert found.error == pytest.approx(tails[found.rank], abs=1e-12)


def test_a_core_and_a_kernel_keep_their_shapes():
    tucker = adapter("q", {r: t.double() for r, t in made("lora", form="tucker", rank=3).items()}, alpha=2)
    for wanted, exact in ((2, False), (3, True)):
        found = resize(tucker, rank=wanted)
        assert found.exact == exact
        if exact:
            assert found.adapter is tucker
        else:
            assert found.adapter.factors["down"].shape == (wanted, 6, 3, 3)
            assert found.adapter.factors["up"].shape == (12, wanted, 1, 1)
        difference = norm(delta_of(found.adapter, dtype="float64") - delta_of(tucker, dtype="float64"))
        assert difference / norm(delta_of(tucker, dtype="float64")) == pytest.approx(found.error, abs=1e-12)


def test_an_embedding_stays_one():
    drawn = {"embedding_down": values(1, 3, 11), "embedding_up": values(2, 6, 3)}
    shapes = {role: tensor.double() for role, tensor in drawn.items()}
    item = adapter("q", shapes, alpha=2)
    found = resize(item, rank=2)
    assert {role: tensor.shape for role, tensor in found.adapter.factors.items()} == {
        "embedding_down": (2, 11),
        "embedding_up": (6, 2),
    }
    whole = delta_of(item, dtype="float64")
    error = norm(delta_of(found.adapter, dtype="float64") - whole) / norm(whole)
    assert error == pytest.approx(found.error, rel=1e-9)


def test_a_magnitude_and_biases_stay():
    beside = {"magnitude": values(5, 6).abs(), "bias_diff": values(6, 6), "up_bias": values(7, 6)}
    item = lora("q", 1, rank=3, alpha=6, **beside)
    for wanted in (2, 3):
        found = resize(item, rank=wanted).adapter
        assert found.factors["magnitude"].same_bytes(item.factors["magnitude"])
        assert found.factors["bias_diff"].same_bytes(item.factors["bias_diff"])
        scaled = found.factors["up_bias"].load().double() * float(found.scale)
        assert torch.allclose(scaled, values(7, 6).double() * 2, rtol=1e-6)


def test_what_is_no_pair_is_refused():
    item = lora("q")
    for wish in ({}, {"rank": 1, "error": 0.1}, {"energy": 0}, {"rank": 0}):
        with pytest.raises(UsageError):
            resize(item, **wish)
    for kind in ("full", "ia3", "glora", "oft"):
        with pytest.raises(NotRepresentable, match="few columns") as caught:
            resize(adapter("q", made(kind), kind), rank=1)
        assert "--to-kind lora" in caught.value.hint


KINDS = [("loha", ""), ("loha", "conv"), ("loha", "tucker"), ("lokr", ""), ("lokr", "both")]


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_other_kinds_are_cut_to_the_nearest_lora(kind, form):
    item = adapter("q", {r: t.double() for r, t in made(kind, form=form).items()}, kind, alpha=3)
    delta = delta_of(item, dtype="float64").flatten(1)
    singular = torch.linalg.svdvals(delta)
    found = resize(item, rank=1)
    assert found.adapter.kind == "lora"
    assert found.error == pytest.approx(norm(singular[1:]) / norm(singular), rel=1e-9)
    ours = delta_of(found.adapter, dtype="float64").flatten(1)
    assert norm(ours - delta) == pytest.approx(norm(singular[1:]), rel=1e-9)


def test_a_lora_that_would_be_larger_than_what_it_replaces_is_not_made():
    loha = adapter("q", made("loha", rows=40, columns=30, rank=4), "loha", alpha=2)
    assert resize(loha, energy=0.9999).adapter is loha
    assert resize(loha, energy=0.5).adapter.kind == "lora"
    assert resize(loha, rank=9).adapter.kind == "lora"
    assert resize(loha, rank=16).adapter is loha


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 8), st.integers(0, 8), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_dead_columns_cost_nothing(rows, columns, rank, dead, seed):
    drawn = {"down": values(seed, rank + dead, columns), "up": values(seed + 1, rows, rank + dead)}
    drawn["up"][:, rank:] = 0
    item = adapter("q", {role: tensor.double() for role, tensor in drawn.items()}, alpha=4)
    found = resize(item, error=0)
    assert found.rank <= min(rank, rows, columns)
    assert found.error == 0
    assert norm(delta_of(found.adapter, dtype="float64") - dense(item)) <= 1e-7 * norm(dense(item))
