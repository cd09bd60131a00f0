"""Regrouping changes where a delta is written, never the delta."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratools.adapters.ownership import owned_columns
from loratools.adapters.regroup import regroup
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable
from loratools.model import Target
from tests.adapters.making import adapter, dense_by_path, lazy, lora, made, same_bytes, values

QKV = ("q", "k", "v")


def fused(*groups, ratio=None):
    """The look-up for layers that fuse these groups of paths; every other path stands alone."""

    def group_of(component: str, path: str) -> Target:
        for group in groups:
            if path in group:
                return Target(component, group, ratio if ratio and len(ratio) == len(group) else (1,) * len(group))
        return Target(component, (path,))

    return group_of


alone = fused()


def close(ours, theirs, tolerance=1e-12):
    assert ours.keys() >= theirs.keys()
    for path, delta in ours.items():
        expected = theirs.get(path, torch.zeros_like(delta))
        assert torch.allclose(delta, expected, rtol=tolerance, atol=tolerance), path


def test_same_groups_are_untouched():
    one = lora(QKV)
    done = regroup([one], fused(QKV))
    assert done.adapters[0] is one
    assert [step.what for step in done.steps] == ["untouched"]


def test_wider_source_is_sliced_and_keeps_alpha():
    one = lora(QKV, rows=9, alpha=1)
    done = regroup([one], alone)
    assert [item.target.paths for item in done.adapters] == [("q",), ("k",), ("v",)]
    assert all(item.alpha is one.alpha and item.factors["down"] is one.factors["down"] for item in done.adapters)
    close(dense_by_path(done.adapters), dense_by_path([one]))


def test_unequal_ratio_slices_by_its_shares():
    one = lora((*QKV, "mlp"), rows=14, ratio=(1, 1, 1, 4))
    parts = {item.target.paths[0]: item.factors["up"].shape[0] for item in regroup([one], alone).adapters}
    assert parts == {"q": 2, "k": 2, "v": 2, "mlp": 8}


def test_narrower_source_is_padded_at_its_rank_and_comes_back():
    one = lora(QKV, rows=6, alpha=3)
    wide = (*QKV, "mlp")
    done = regroup([one], fused(wide, ratio=(1, 1, 1, 4)))
    (padded,) = done.adapters
    assert done.steps[0].what == "pad"
    assert padded.factors["up"].shape == (14, 2)
    assert (padded.rank, padded.alpha) == (2, one.alpha)
    close(dense_by_path([padded]), dense_by_path([one]))
    back = regroup([padded], fused(QKV), recorded=done.groups)
    assert [item.target.paths for item in back.adapters] == [QKV]
    assert same_bytes(back.adapters[0], one)


def test_identical_inputs_are_shared():
    parts = regroup([lora(QKV, rows=9)], alone).adapters
    fresh = [replace(item, factors={role: lazy(t.load()) for role, t in item.factors.items()}) for item in parts]
    done = regroup(fresh, fused(QKV))
    assert [step.what for step in done.steps] == ["share"]
    assert same_bytes(done.adapters[0], lora(QKV, rows=9))


def test_block_then_split_by_record_returns_the_bytes():
    parts = [lora("q", 1, rank=2, alpha=4), lora("k", 3, rank=3, alpha=6), lora("v", 5, rank=1, alpha=2)]
    done = regroup(parts, fused(QKV))
    (whole,) = done.adapters
    assert done.steps[0].what == "block"
    assert (whole.rank, whole.alpha.value) == (6, 12)
    assert done.groups == {"unet:q+k+v": [("q", 0, 2), ("k", 2, 5), ("v", 5, 6)]}
    close(dense_by_path([whole]), dense_by_path(parts))
    for recorded in (done.groups, None):
        back = regroup([whole], alone, recorded=recorded)
        assert [item.alpha.value for item in back.adapters] == [4, 6, 2]
        assert all(same_bytes(ours, theirs) for ours, theirs in zip(back.adapters, parts, strict=True))


def test_record_that_no_longer_fits_the_values_is_not_followed():
    parts = [lora(path, seed, alpha=2) for seed, path in ((1, "q"), (3, "k"), (5, "v"))]
    done = regroup(parts, fused(QKV))
    up = done.adapters[0].factors["up"].load()
    up[0, 5] = 1.0
    changed = replace(done.adapters[0], factors={**done.adapters[0].factors, "up": lazy(up)})
    back = regroup([changed], alone, recorded=done.groups)
    assert [item.rank for item in back.adapters] == [6, 6, 6]
    assert "do not fit" in back.steps[0].note
    close(dense_by_path(back.adapters), dense_by_path([changed]))


@pytest.mark.parametrize(
    "nonsense", [None, 7, "text", [["q", 0]], [["q", "0", "2"]], [["q", -1, 2]], [["q", 0, 99]], [["x", 0, 1]], []]
)
def test_record_that_is_nonsense_is_not_followed(nonsense):
    whole = lora(QKV, 1, rows=9)
    back = regroup([whole], alone, recorded={"unet:q+k+v": nonsense})
    close(dense_by_path(back.adapters), dense_by_path([whole]))


@pytest.mark.parametrize("dead", ["part", "column"])
def test_columns_that_are_all_zero_are_not_guessed(dead):
    parts = [lora(path, seed) for seed, path in ((1, "q"), (3, "k"), (5, "v"))]
    up = parts[1].factors["up"].load()
    up[:, slice(None) if dead == "part" else 0] = 0
    parts[1] = replace(parts[1], factors={**parts[1].factors, "up": lazy(up)})
    done = regroup(parts, fused(QKV))
    back = regroup(done.adapters, alone)
    assert [item.rank for item in back.adapters] == [6, 6, 6]
    close(dense_by_path(back.adapters), dense_by_path(parts))
    known = regroup(done.adapters, alone, recorded=done.groups)
    assert all(same_bytes(ours, theirs) for ours, theirs in zip(known.adapters, parts, strict=True))


def test_missing_part_is_zero_and_comes_back_missing():
    parts = [lora("q", 1), lora("v", 3, rank=1, alpha=1)]
    done = regroup(parts, fused(QKV))
    close(dense_by_path(done.adapters), dense_by_path(parts))
    assert not dense_by_path(done.adapters)["k"].any()
    for recorded in (done.groups, None):
        back = regroup(done.adapters, alone, recorded=recorded)
        assert [item.target.paths for item in back.adapters] == [("q",), ("v",)]
        assert all(same_bytes(ours, theirs) for ours, theirs in zip(back.adapters, parts, strict=True))


@pytest.mark.parametrize(
    ("alphas", "measured"), [((2, 1, 4), False), ((2, 3, 2), True), ((2, 0, 2), False), ((None, 2, None), False)]
)
def test_unequal_scales_are_folded_and_listed(alphas, measured):
    parts = [lora(path, seed, alpha=a) for (seed, path), a in zip(((1, "q"), (3, "k"), (5, "v")), alphas, strict=True)]
    done = regroup(parts, fused(QKV))
    folds = [step for step in done.steps if step.what == "fold"]
    assert bool(folds) == (alphas != (None, 2, None))
    assert any(step.measured for step in folds) == measured
    close(dense_by_path(done.adapters), dense_by_path(parts), 1e-7 if measured else 1e-14)


def test_power_of_two_that_float16_cannot_hold_goes_to_float32():
    tiny = (values(1, 6, 2).float() * 2**-22).half()
    parts = [adapter("q", {"down": values(2, 2, 5), "up": tiny}, alpha=1), lora("k", 3, alpha=2), lora("v", 5, alpha=2)]
    (whole,) = regroup(parts, fused(QKV)).adapters
    assert whole.factors["up"].dtype == "F32"
    assert torch.equal(dense_by_path([whole])["q"], dense_by_path(parts)["q"])


def test_rank_stabilised_scales_survive_slices_exactly_and_blocks_to_a_double():
    parts = [
        replace(item, alpha=item.alpha._replace(rank_stabilized=True))
        for item in (lora(p, s, alpha=3) for s, p in enumerate(QKV))
    ]
    done = regroup(parts, fused(QKV))
    assert done.steps[0].measured
    close(dense_by_path(done.adapters), dense_by_path(parts), 1e-14)
    four = regroup([*parts, lora("o", 9, alpha=3)], fused((*QKV, "o")))
    close(dense_by_path(four.adapters), dense_by_path([*parts, lora("o", 9, alpha=3)]), 1e-6)
    wide = lora(QKV, rows=9, alpha=3)
    wide = replace(wide, alpha=wide.alpha._replace(rank_stabilized=True))
    assert all(item.scale.equals(wide.scale) for item in regroup([wide], alone).adapters)


def test_dtypes_are_widened_where_parts_differ():
    parts = [lora("q", 1), lora("k", 3, dtype=torch.bfloat16), lora("v", 5, dtype=torch.float32)]
    done = regroup(parts, fused(QKV))
    assert done.adapters[0].factors["up"].dtype == "F32"
    close(dense_by_path(done.adapters), dense_by_path(parts), 0)


def test_whole_source_meets_another_part_without_being_cut():
    wide = (*QKV, "mlp")
    parts = [lora(QKV, 1, rows=6), lora("mlp", 3, rows=8)]
    done = regroup(parts, fused(wide, ratio=(1, 1, 1, 4)))
    assert done.adapters[0].rank == 4
    close(dense_by_path(done.adapters), dense_by_path(parts))
    split = regroup(done.adapters, fused(QKV), recorded=done.groups)
    assert {item.target.paths: item.rank for item in split.adapters} == {QKV: 2, ("mlp",): 2}
    close(dense_by_path(split.adapters), dense_by_path(parts))


def test_two_adapters_on_one_path_are_refused_naming_both():
    with pytest.raises(IncompleteAdapter, match="twice") as caught:
        regroup([lora(QKV), lora("k", 3)], alone)
    assert caught.value.evidence["found"] == ["q_k_v", "k"]


def test_rows_that_fit_no_ratio_are_refused_with_evidence():
    with pytest.raises(ArchitectureMismatch) as caught:
        regroup([lora(QKV, rows=7)], alone)
    assert caught.value.evidence == {"expected": [1, 1, 1], "found": 7}
    with pytest.raises(ArchitectureMismatch, match="ratio"):
        regroup([lora("q", rows=6), lora("k", rows=5)], fused(QKV))


def test_kinds_that_cannot_follow_are_refused():
    three = [adapter(path, made("lokr", seed), "lokr") for seed, path in enumerate(QKV)]
    with pytest.raises(NotRepresentable, match="lokr"):
        regroup(three, fused(QKV))
    with pytest.raises(NotRepresentable, match="kinds"):
        regroup([lora("q", rows=12, columns=6), three[1]], fused(QKV))
    constrained = adapter(QKV, made("oft"), "oft", alpha=Fraction(1, 8))
    with pytest.raises(NotRepresentable, match="constraint"):
        regroup([constrained], alone)
    assert regroup([constrained], fused(QKV)).adapters[0] is constrained
    dora = [lora("q", 1, magnitude=values(2, 6)), lora("k", 3), lora("v", 5)]
    with pytest.raises(NotRepresentable, match="magnitude"):
        regroup(dora, fused(QKV))


def test_loha_blocks_are_undone_by_record():
    parts = [adapter(path, made("loha", seed), "loha", alpha=2) for seed, path in enumerate(QKV)]
    done = regroup(parts, fused(QKV))
    assert (done.adapters[0].rank, done.adapters[0].alpha.value) == (6, 6)
    back = regroup(done.adapters, alone, recorded=done.groups)
    assert all(same_bytes(ours, theirs) for ours, theirs in zip(back.adapters, parts, strict=True))


def test_part_with_a_bias_of_its_own_is_never_left_out():
    bias = torch.zeros(9, dtype=torch.float16)
    bias[4] = 1
    one = lora(QKV, rows=9, up_bias=bias)
    up = one.factors["up"].load()
    up[3:] = 0
    one = replace(one, factors={**one.factors, "up": lazy(up)})
    back = regroup([one], alone)
    assert [item.target.paths[0] for item in back.adapters] == list(QKV)
    assert back.adapters[1].factors["up_bias"].load().any()


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([None, 1, 2, 4])), min_size=3, max_size=3), st.integers(0, 6)
)
@settings(max_examples=50, deadline=None)
def test_any_fuse_and_split_keep_every_delta(shapes, absent):
    parts = [
        lora(path, 10 * index, rank=rank, alpha=alpha)
        for index, (path, (rank, alpha)) in enumerate(zip(QKV, shapes, strict=True))
        if absent != index
    ]
    done = regroup(parts, fused(QKV))
    close(dense_by_path(done.adapters), dense_by_path(parts), 1e-7)
    for recorded in (done.groups, None):
        back = regroup(done.adapters, alone, recorded=recorded)
        close(dense_by_path(back.adapters), dense_by_path(parts), 1e-7)
        assert {item.target.paths[0]: item.rank for item in back.adapters} == {
            item.target.paths[0]: item.rank for item in parts
        }


def test_ownership_is_exclusive_and_contiguous():
    def owned(rows):
        return owned_columns(lazy(torch.tensor(rows, dtype=torch.float16)), (1, 1))

    assert owned([[1, 0], [0, 1]]) == [(0, 1), (1, 2)]
    assert owned([[1, 1], [0, 1]]) is None
    assert owned([[1, 0], [0, 0]]) is None
    assert owned([[1, 0, 1], [0, 1, 0]]) is None
    assert owned([[1, 1], [0, 0]]) == [(0, 2), None]
    assert owned([[1, -0.0], [0, 1]]) is None
