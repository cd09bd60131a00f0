"""Thinning and voting against PEFT's own functions, bit for bit where nothing is left to chance."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from loratools.adapters.election import by_dice, by_magnitude, elected, seed_of


def drawn(count: int, rows: int, columns: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, columns, generator=generator) for _ in range(count)]


@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1, exclude_max=True), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_ties_and_magnitude_prune_are_pefts(count, rows, columns, density, seed):
    deltas = drawn(count, rows, columns, seed)
    weights = torch.linspace(-0.5, 1.2, count)
    for method in ("ties", "magnitude_prune"):
        ours = elected(deltas, weights.tolist(), method, density, [0] * count)
        theirs = getattr(merge_utils, method)(deltas, weights, density)
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_dice_of_one_seed_fall_as_pefts_do(density):
    (delta,) = drawn(1, 30, 20, 4)
    torch.manual_seed(11)
    assert by_dice(delta, density, 11).equal(merge_utils.prune(delta, density, "random", rescale=True))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_pefts_on_deltas_thinned_alike(method, monkeypatch):
    deltas, weights, seeds = drawn(3, 20, 30, 1), torch.tensor([0.7, -0.3, 1.0]), [5, 6, 7]
    thinned = iter([by_dice(delta, 0.4, seed) for delta, seed in zip(deltas, seeds, strict=True)])
    monkeypatch.setattr(merge_utils, "prune", lambda *_, **__: next(thinned))
    theirs = getattr(merge_utils, method)(deltas, weights, 0.4)
    assert torch.allclose(elected(deltas, weights.tolist(), method, 0.4, seeds), theirs, rtol=1e-6, atol=1e-7)


def test_dice_keep_their_share_and_the_mean():
    delta = torch.ones(400, 400)
    kept = by_dice(delta, 0.3, 1)
    assert float((kept != 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1, abs=0.03)
    assert kept[kept != 0].unique().tolist() == [pytest.approx(1 / 0.3)]


def test_the_largest_elements_stay_as_they_are():
    delta = torch.tensor([[1.0, -4.0, 2.0], [-3.0, 0.5, 0.1]])
    assert by_magnitude(delta, 0.5).tolist() == [[0, -4, 2], [-3, 0, 0]]


def test_seeds_differ_by_layer_and_input_and_nothing_else():
    seeds = {seed_of(seed, name, number) for seed in (0, 1) for name in ("a", "b") for number in (0, 1)}
    assert len(seeds) == 8
    assert seed_of(3, "unet:mid", 1) == seed_of(3, "unet:mid", 1)
