"""DoRA's direction: with the row norms it gives the tuned weight, and nothing that does so is nearer to the base."""

import pytest
import torch

from loratools.adapters.direction import direction


def merged(base, change, magnitude):
    made = base.flatten(1).double() + change.double()
    norm = made.norm(dim=1, keepdim=True)
    return magnitude[:, None] * made / norm.where(norm > 0, torch.ones(()))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (8, 5, 3, 3)])
def test_magnitude_and_direction_give_the_tuned_weight(shape):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    tuned = base + 0.2 * torch.randn(shape, generator=generator)
    change, magnitude = direction(base, tuned)
    assert torch.allclose(merged(base, change, magnitude).float(), tuned.flatten(1), atol=1e-5)
    assert float(change.norm()) <= float((tuned - base).norm()) * (1 + 1e-6)
    for scale in (0.9, 1.1):  # the same directions at other lengths are farther from the base
        other = scale * (base.flatten(1) + change) - base.flatten(1)
        assert bool((other.norm(dim=1) >= change.norm(dim=1)).all())


def test_a_weight_that_was_only_stretched_needs_no_direction():
    base = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    change, magnitude = direction(base, base * torch.linspace(0.5, 2, 6)[:, None])
    assert float(change.norm()) < 1e-6 * float(base.norm())
    assert torch.allclose(magnitude.float(), base.norm(dim=1) * torch.linspace(0.5, 2, 6))


def test_rows_of_zero_and_rows_that_turned_round_are_kept():
    base = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    tuned = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, -1.0]])
    change, magnitude = direction(base, tuned)
    assert torch.allclose(merged(base, change, magnitude).float(), tuned, atol=1e-6)
