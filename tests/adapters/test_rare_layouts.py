"""Layouts that few files have: sparse residuals, rotations stored whole, constraints, old GLoRA, DyLoRA's names."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from loratools.adapters.difference import difference
from loratools.adapters.exact import same_product
from loratools.adapters.kind import delta_of, kind_of
from loratools.errors import IncompleteAdapter, NotRepresentable
from loratools.formats.suffixes import WRITTEN, cut
from loratools.model import Alpha
from loratools.tensors.lazy import LazyTensor
from tests.adapters.making import adapter, lazily, made, values

ONE = Alpha().scale(None)


def narrow(numbers) -> LazyTensor:
    """16-bit integers, as LyCORIS stores positions: those beyond 32767 come out negative."""
    tensor = torch.as_tensor(numbers).to(torch.int16)
    return LazyTensor.from_bytes("I16", tuple(tensor.shape), tensor.numpy().tobytes())


def with_residual(rows=12, columns=6, alpha=4):
    """A LoRA of rank 2 with three single elements beside it, and its delta by hand."""
    factors = {role: tensor.double() for role, tensor in made("lora", rows=rows, columns=columns).items()}
    at, extra = torch.tensor([[0, rows - 1, 3], [1, columns - 1, 2]]), torch.tensor([0.5, -2.0, 0.25])
    residual = {"residual_indices": narrow(at), "residual_values": extra, "residual_size": narrow([rows, columns])}
    expected = factors["up"] @ factors["down"]
    for row, column, value in zip(*at.tolist(), extra.tolist(), strict=True):
        expected[row, column] += value
    return adapter("q", {**factors, **residual}, alpha=alpha), expected * alpha / 2


@pytest.mark.parametrize("shape", [(12, 6), (6, 40000), (65536, 3)])
def test_a_residual_is_added_before_the_scale(shape):
    item, expected = with_residual(*shape)
    kind_of("lora").check(item.factors)
    assert torch.allclose(delta_of(item, dtype="float64"), expected, rtol=1e-13, atol=1e-13)


def test_positions_that_sixteen_bits_cannot_tell_apart_are_refused():
    item, _ = with_residual(2 * 65536, 3)
    with pytest.raises(NotRepresentable, match="16-bit"):
        delta_of(item)


def test_a_residual_outside_its_weight_is_refused():
    item, _ = with_residual()
    for change in (
        {"residual_indices": narrow([[0, 12, 3], [1, 5, 2]])},
        {"residual_indices": narrow([[0, -1, 3], [1, 5, 2]])},
        {"residual_size": narrow([12, 7])},
    ):
        with pytest.raises(IncompleteAdapter):
            kind_of("lora").delta({**item.factors, **change}, ONE)
    for role in ("residual_indices", "residual_values", "residual_size"):
        with pytest.raises(IncompleteAdapter):
            kind_of("lora").check({name: tensor for name, tensor in item.factors.items() if name != role})


def test_an_empty_residual_changes_nothing():
    item, _ = with_residual()
    empty = {"residual_indices": narrow(torch.zeros(2, 0)), "residual_values": LazyTensor.zeros("F16", (0,))}
    factors = {**item.factors, **empty}
    kind_of("lora").check(factors)
    plain = {role: item.factors[role] for role in ("down", "up")}
    assert torch.equal(kind_of("lora").delta(factors, ONE), kind_of("lora").delta(plain, ONE))
    one = adapter("q", factors)
    assert same_product(one, one)


def test_layouts_refuse_a_residual_and_a_comparison_sees_it():
    item, _ = with_residual()
    kind = kind_of("lora")
    for attempt in (
        lambda: kind.split_rows(item.factors, (4, 8)),
        lambda: kind.fuse_rows([item.factors, item.factors], (12, 12)),
        lambda: kind.swap_halves(item.factors),
        lambda: kind.transpose(item.factors),
    ):
        with pytest.raises(NotRepresentable):
            attempt()
    plain = adapter("q", {role: item.factors[role] for role in ("down", "up")}, alpha=4)
    assert difference([item], [item]).relative_error == 0
    assert difference([item], [plain]).relative_error > 0.01


def test_rotations_stored_whole_turn_the_rows_by_blocks():
    blocks, base = values(1, 3, 4, 4, dtype=torch.float64), values(2, 12, 5, dtype=torch.float64)
    factors, kind = lazily({"diagonal": blocks}), kind_of("oft")
    kind.check(factors)
    assert kind.weight_shape(factors) == (12, None)
    expected = torch.block_diag(*blocks).T @ base - base
    assert torch.allclose(kind.delta(factors, ONE, base, dtype="float64"), expected, rtol=1e-13, atol=1e-13)
    # its alpha means nothing
    stated = kind.delta(factors, ONE, base, dtype="float64", constraint=Fraction(1, 10**6))
    assert torch.allclose(stated, expected, rtol=1e-13, atol=1e-13)


def test_rotations_stored_whole_follow_rows_and_a_missing_part_is_the_identity():
    blocks, base = values(1, 3, 4, 4, dtype=torch.float64), values(2, 12, 5, dtype=torch.float64)
    factors, kind = lazily({"diagonal": blocks}), kind_of("oft")
    whole = kind.delta(factors, ONE, base, dtype="float64")
    parts = kind.split_rows(factors, (4, 8))
    for part, rows, piece in zip(parts, base.split((4, 8)), whole.split((4, 8)), strict=True):
        assert torch.allclose(kind.delta(part, ONE, rows, dtype="float64"), piece, rtol=1e-13)
    fused = kind.fuse_rows([parts[0], None], (4, 8))
    found = kind.delta(fused, ONE, base, dtype="float64")
    assert torch.allclose(found[:4], whole[:4], rtol=1e-13)
    assert not found[4:].any()
    with pytest.raises(NotRepresentable):
        kind.fuse_rows([parts[0], lazily({"blocks": blocks[:2]})], (4, 8))


@pytest.mark.parametrize("alpha", ["0.001", "0.01", "1000"])
def test_the_constraint_of_oft_is_alpha_times_the_rows(alpha):
    blocks, base = values(1, 3, 4, 4, dtype=torch.float64), values(2, 12, 5, dtype=torch.float64)
    skew = blocks - blocks.transpose(1, 2)
    limit = float(Fraction(alpha)) * 12
    skew = skew * min(1.0, limit / float(skew.norm()))
    eye = torch.eye(4, dtype=torch.float64)
    turn = torch.block_diag(*((eye + one) @ torch.linalg.inv(eye - one) for one in skew))
    item = adapter("q", {"blocks": blocks}, "oft", alpha=Fraction(alpha))
    found = delta_of(item, base, dtype="float64")
    # kohya and LyCORIS add 1e-8 to the norm
    assert torch.allclose(found, turn.T @ base - base, rtol=1e-6, atol=1e-9)
    assert item.scale.equals(ONE)


def old_layout(new: dict) -> dict:
    return {"a1": new["a2"], "a2": new["a1"], "b1": new["b2"], "b2": new["b1"]}


@pytest.mark.parametrize(("rows", "columns"), [(12, 6), (8, 8)])
def test_old_glora_is_told_by_its_shapes_also_on_square_layers(rows, columns):
    new, kind = made("glora", rows=rows, columns=columns), kind_of("glora")
    base = values(9, rows, columns, dtype=torch.float64)
    expected = base @ new["a1"].double() @ new["a2"].double() + new["b1"].double() @ new["b2"].double()
    for factors in (lazily(new), lazily(old_layout(new))):
        kind.check(factors)
        assert kind.rank(factors) == 2
        assert kind.weight_shape(factors) == (rows, columns)
        assert torch.allclose(kind.delta(factors, ONE, base, dtype="float64"), expected, rtol=1e-12)
        part = kind.split_rows(factors, (4, rows - 4))[0]
        assert torch.allclose(kind.delta(part, ONE, base[:4], dtype="float64"), expected[:4], rtol=1e-12)


def test_square_glora_factors_are_ambiguous():
    factors, kind = lazily(made("glora", rows=4, columns=4, rank=4)), kind_of("glora")
    kind.check(factors)
    assert kind.weight_shape(factors) == (4, 4)
    for attempt in (
        lambda: kind.delta(factors, ONE, torch.eye(4)),
        lambda: kind.split_rows(factors, (2, 2)),
        lambda: kind.swap_halves(factors),
    ):
        with pytest.raises(NotRepresentable, match="square"):
            attempt()


@pytest.mark.parametrize("kind", ["loha", "lokr"])
@pytest.mark.parametrize("form", ["", "tucker"])
def test_a_bias_difference_beside_other_kinds_follows_the_rows(kind, form):
    bias = values(5, 12, dtype=torch.float64)
    factors, item = lazily({**made(kind, form=form), "bias_diff": bias}), kind_of(kind)
    item.check(factors)
    assert torch.equal(item.bias_delta(factors, Alpha(Fraction(9)).scale(2), dtype="float64"), bias)
    parts = item.split_rows(factors, (4, 8))
    pieces = [item.bias_delta(part, ONE, dtype="float64") for part in parts]
    assert torch.equal(torch.cat(pieces), bias)
    fused = item.fuse_rows(parts, (4, 8))
    assert torch.equal(item.bias_delta(fused, ONE, dtype="float64"), bias)
    if (kind, form) != ("loha", "tucker"):
        swapped = item.bias_delta(item.swap_halves(factors), ONE, dtype="float64")
        assert torch.equal(swapped, torch.cat([bias[6:], bias[:6]]))
    with pytest.raises(NotRepresentable):
        item.transpose(factors)
    with pytest.raises(IncompleteAdapter):
        item.check({**factors, "bias_diff": LazyTensor.zeros("F16", (11,))})


def test_the_names_of_dylora_and_of_a_residual_are_known_and_written_back():
    for text, role in ((".dyn_up", "up"), (".dyn_down", "down"), (".bias_indices", "residual_indices")):
        found = cut(f"lora_unet_q{text}")
        assert found is not None
        assert (found.row.role, found.row.kind) == (role, "lora")
    assert WRITTEN["kohya"]["lora.up"] == ".lora_up.weight"
    assert WRITTEN["kohya"]["lora.residual_values"] == ".bias_values"
