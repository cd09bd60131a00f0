"""Noise is told from a change, and strangers from relatives."""

import pytest
import torch

from loratools.adapters.likeness import STRANGERS, likeness


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 64), (320, 320), (320, 1280), (640, 64)])
@pytest.mark.parametrize("size", [1e-4, 0.1])
def test_white_noise_is_white_at_any_size(shape, size):
    base = drawn(*shape)
    found = likeness(base, base + size * drawn(*shape, seed=1))
    assert found.white
    assert found.cosine > 0.9
    assert found.change == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("rank", [1, 8, 32])
def test_a_low_rank_change_is_not_white_even_under_noise(rank):
    base = drawn(320, 320)
    change = drawn(320, rank, seed=1) @ drawn(rank, 320, seed=2)
    change /= change.norm()
    noise = drawn(320, 320, seed=3)
    assert not likeness(base, base + change).white
    assert not likeness(base, base + change + 0.5 * noise / noise.norm()).white


def test_a_change_of_full_rank_whose_values_fall_is_not_white():
    left, _, right = torch.linalg.svd(drawn(320, 320, seed=1))
    assert not likeness(drawn(320, 320), drawn(320, 320) + (left * torch.arange(1, 321) ** -0.5) @ right).white


def test_strangers_have_no_angle_in_common():
    assert abs(likeness(drawn(128, 256), drawn(128, 256, seed=9)).cosine) < STRANGERS / 4


def test_small_layers_do_not_judge_and_equal_or_zero_weights_have_nothing_to_tell():
    assert likeness(drawn(40, 400), drawn(40, 400, seed=1)).peak is None
    assert likeness(drawn(8, 8), drawn(8, 8)) is None
    assert likeness(torch.zeros(8, 8), drawn(8, 8)) is None
