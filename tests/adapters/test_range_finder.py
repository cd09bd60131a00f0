"""Truncated decompositions of whole matrices, judged by torch.linalg.svd in float64."""

from __future__ import annotations

import functools

import pytest
import torch

from loratools.adapters import range_finder
from loratools.adapters.range_finder import SMALL, truncated_svd
from loratools.errors import NonFinite, UsageError

SHAPES = {"tall": (720, 560), "wide": (540, 700), "square": (600, 600), "small": (96, 64), "broad": (960, 1000)}


def falling(name: str, count: int) -> torch.Tensor:
    """Singular values: 64 of a fine-tune over noise; i^-½; a line, as a random square matrix has; e-folds; 20 and 0;
    a few that are found at once above many that are not; and 20 above noise, of which a larger rank keeps the best.
    """
    at = torch.arange(1, count + 1, dtype=torch.float64)
    return {
        "easy": torch.where(at <= 64, at**-0.7, torch.full_like(at, 1e-4)),
        "slow": at**-0.5,
        "line": 1 - (at - 1) / count,
        "steep": torch.exp(-at / 12),
        "bulk": torch.where(at <= 40, 3 - 1.5 * at / 40, 1 - (at - 1) / count),
        "noisy": torch.where(at <= 20, at**-0.7, 2e-4 * (1 - (at - 1) / count)),
        "deficient": torch.where(at <= 20, at**-0.5, torch.zeros_like(at)),
    }[name]


@functools.cache
def matrix(spectrum: str, shape: str) -> torch.Tensor:
    rows, columns = SHAPES[shape]
    count = min(rows, columns)
    generator = torch.Generator().manual_seed(rows + columns)
    left, right = (
        torch.linalg.qr(torch.randn(extent, count, generator=generator, dtype=torch.float64)).Q
        for extent in (rows, columns)
    )
    return (left * falling(spectrum, count)) @ right.T


@functools.cache
def tails(spectrum: str, shape: str) -> torch.Tensor:
    """The relative error of the best matrix of rank 0, 1, … (Eckart and Young)."""
    squares = torch.linalg.svdvals(matrix(spectrum, shape)).square()
    kept = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return (kept / kept[0]).sqrt()


def residual(whole: torch.Tensor, found) -> float:
    made = (found.left * found.values) @ found.right
    return float((whole.double() - made).norm() / whole.double().norm())


CASES = [("easy", "tall"), ("easy", "small"), ("slow", "tall"), ("slow", "wide"), ("slow", "square"), ("slow", "small"),
         ("line", "wide"), ("line", "square"), ("steep", "tall"), ("deficient", "wide"),
         ("slow", "broad"), ("bulk", "broad"), ("noisy", "broad")]  # fmt: skip
named = pytest.mark.parametrize("case", CASES, ids="-".join)


@named
@pytest.mark.parametrize("rank", [1, 16, 64])
def test_a_rank_comes_within_a_thousandth_of_eckart_and_young(case, rank):
    whole, best = matrix(*case), float(tails(*case)[min(rank, *matrix(*case).shape)])
    found = truncated_svd(whole.float(), rank=rank)
    assert found.rank == rank
    error = residual(whole.float(), found)
    # The matrix itself is float32: what is below its rounding has no best.
    assert error <= best * 1.001 + 1e-6
    assert found.error == pytest.approx(error, rel=1e-4, abs=1e-9)
    assert found.norm == pytest.approx(float(whole.float().double().norm()), rel=1e-12)
    assert bool((found.values.diff() <= 0).all())
    for side in (found.left, found.right.T):
        assert torch.allclose(side.T @ side, torch.eye(rank, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("case", [("slow", "square"), ("line", "wide"), ("easy", "tall")], ids="-".join)
def test_a_rank_near_the_short_side_is_as_good(case):
    rank = 300
    found = truncated_svd(matrix(*case), rank=rank)
    assert found.error == pytest.approx(float(tails(*case)[rank]), rel=1e-6)
    assert found.error == pytest.approx(residual(matrix(*case), found), rel=1e-6)


@named
@pytest.mark.parametrize("error", [0.7, 0.1, 1e-5])
def test_an_error_is_kept_by_the_smallest_rank_that_can(case, error):
    whole, best = matrix(*case), tails(*case)
    found = truncated_svd(whole, error=error)
    smallest = max(1, int((best > error).sum()))
    assert found.error <= error
    assert residual(whole, found) <= error * (1 + 1e-6) + 1e-14
    assert found.rank == smallest


@named
def test_a_share_of_the_energy_is_kept_by_the_smallest_rank_that_can(case):
    found = truncated_svd(matrix(*case), energy=0.75)
    assert 1 - found.error**2 >= 0.75
    assert found.rank == max(1, int((tails(*case) > 0.5).sum()))


def test_an_error_between_two_ranks_is_decided_exactly():
    best = tails("slow", "square")
    for rank in (10, 40):
        limit = float(best[rank]) * (1 + 1e-9)
        assert truncated_svd(matrix("slow", "square"), error=limit).rank == rank
        assert truncated_svd(matrix("slow", "square"), error=float(best[rank]) * (1 - 1e-9)).rank == rank + 1


@pytest.mark.parametrize("error", [0.0, 1e-13, 1e-8])
def test_errors_that_squares_cannot_hold_are_kept_too(error):
    found = truncated_svd(matrix("steep", "square"), error=error)
    assert residual(matrix("steep", "square"), found) <= max(error, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_the_matrix_that_it_holds(dtype):
    whole = (matrix("slow", "tall") * 3).to(dtype)
    found = truncated_svd(whole, rank=24)
    values = torch.linalg.svdvals(whole.double())
    assert found.error == pytest.approx(float(values[24:].norm() / values.norm()), rel=1e-3)
    assert found.left.dtype == found.values.dtype == found.right.dtype == torch.float64


@pytest.mark.parametrize("size", [1e-300, 1e-42, 1e-20, 1e20, 1e37, 1e300])
@pytest.mark.parametrize("shape", ["small", "square"])
def test_very_small_and_very_large_values_neither_vanish_nor_overflow(size, shape):
    whole = matrix("slow", shape) * size
    found, plain = truncated_svd(whole, rank=8), truncated_svd(matrix("slow", shape), rank=8)
    assert found.error == pytest.approx(plain.error, rel=1e-6)
    assert torch.allclose(found.values / size, plain.values, rtol=1e-6)


def test_the_smallest_number_there_is_has_a_decomposition():
    whole = torch.zeros(3, 5, dtype=torch.float64)
    whole[1, 2] = 5e-324
    found = truncated_svd(whole, rank=2)
    assert (found.left * found.values @ found.right).equal(whole)


@pytest.mark.parametrize("case", [("deficient", "square"), ("slow", "wide")], ids="-".join)
def test_sides_are_orthonormal_beyond_the_rank_there_is(case):
    found = truncated_svd(matrix(*case), rank=400)
    for side in (found.left, found.right.T):
        assert torch.allclose(side.T @ side, torch.eye(400, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (700, 1), (1, 700), (SMALL, SMALL + 1)])
def test_every_shape_has_a_decomposition(shape):
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = truncated_svd(whole, rank=4)
    assert found.rank == min(4, *shape)
    assert residual(whole, truncated_svd(whole, error=0.0)) <= 1e-13


@pytest.mark.parametrize("shape", [(5, 4), (600, 530)])
def test_zeros_have_rank_one_unless_another_is_asked_for(shape):
    zeros = torch.zeros(shape)
    assert (truncated_svd(zeros).rank, truncated_svd(zeros).error) == (1, 0.0)
    found = truncated_svd(zeros, rank=3)
    assert found.rank == 3
    assert not any(half.any() for half in found.halves())


@pytest.mark.parametrize("case", [("line", "square"), ("slow", "wide"), ("deficient", "tall")], ids="-".join)
def test_one_seed_makes_the_same_bytes_and_leaves_torchs_own_randomness_alone(case):
    before = torch.get_rng_state()
    first, again, other = (truncated_svd(matrix(*case), rank=16, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip((first.left, first.values, first.right), (again.left, again.values, again.right),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)
    assert other.error == pytest.approx(first.error, rel=1e-3, abs=1e-9)
    assert bool((first.right.gather(1, first.right.abs().argmax(1, keepdim=True)) > 0).all())


def test_a_low_rank_of_a_large_matrix_decomposes_nothing_large(monkeypatch):
    real, seen = torch.linalg.svd, []

    def svd(tensor, **how):
        seen.append(min(tensor.shape))
        return real(tensor, **how)

    monkeypatch.setattr(torch.linalg, "svd", svd)
    monkeypatch.setattr(range_finder, "_by_gram", None)
    truncated_svd(matrix("slow", "square"), rank=16)
    truncated_svd(matrix("easy", "square"), error=0.1)
    assert seen
    assert max(seen) <= 128


def test_what_has_no_decomposition_or_no_meaning_is_refused():
    for value in (float("nan"), float("inf")):
        whole = torch.ones(4, 5)
        whole[2, 2] = value
        with pytest.raises(NonFinite):
            truncated_svd(whole, rank=1)
    for wish in ({"rank": 0}, {"error": 1.0}, {"energy": 0.0}, {"rank": 1, "error": 0.1}):
        with pytest.raises(UsageError):
            truncated_svd(torch.ones(4, 5), **wish)
