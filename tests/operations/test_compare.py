"""compare: the same delta or not, judged by dense float64 products."""

import json
import math

import numpy as np
import pytest
import torch

import loratools as lt
from loratools.errors import ArchitectureMismatch, NonFinite, UnknownKeys, UsageError
from tests.files import save
from tests.operations.making import KEY, METADATA, MODULES, QUERY, QUERY_NAME, delta, file, tensors


@pytest.fixture
def one(tmp_path):
    return file(tmp_path / "one.safetensors")


def written(held, tmp_path):
    return save(held, tmp_path / "other.safetensors", METADATA)


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_a_file_is_equal_to_itself_in_every_format(one, tmp_path, to):
    other = lt.convert(one, to=to).save(tmp_path / ("out" if to == "peft" else "out.safetensors")).path
    for pair in ((one, other), (other, one)):
        found = lt.compare(*pair)
        assert (found.equal, found.worst, len(found.modules)) == (True, 0.0, len(MODULES))
        assert {item.proof for item in found.modules} == {"identical"}


@pytest.mark.parametrize("change", [1.01, 0.99, -1.0, 2.0])
def test_another_scale_is_its_relative_error(one, tmp_path, change):
    held = tensors()
    held[f"{QUERY}.alpha"] *= change
    found = lt.compare(one, written(held, tmp_path))
    assert not found.equal
    assert found.modules[0].module == QUERY_NAME
    exact = abs(float(held[f"{QUERY}.alpha"]) / 2.0 - 1)  # alpha is a float32
    assert math.isclose(found.worst, exact, rel_tol=1e-9)
    assert [item.relative_error for item in found.modules[1:]] == [0.0] * (len(MODULES) - 1)
    assert math.isclose(found.modules[0].cosine, math.copysign(1, change), abs_tol=1e-12)


def test_the_tolerance_decides(one, tmp_path):
    held = tensors()
    held[f"{QUERY}.alpha"] *= 1.01
    other = written(held, tmp_path)
    worst = lt.compare(one, other).worst
    assert lt.compare(one, other, tolerance=worst).equal
    assert not lt.compare(one, other, tolerance=math.nextafter(worst, 0)).equal


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_bounds_nothing_is_refused(one, tolerance):
    with pytest.raises(UsageError):
        lt.compare(one, one, tolerance=tolerance)


def test_a_module_on_one_side_only_differs(one, tmp_path):
    held = {key: tensor for key, tensor in tensors().items() if not key.startswith(KEY)}
    other = written(held, tmp_path)
    for a, b, where in ((one, other, "a"), (other, one, "b")):
        found = lt.compare(a, b)
        assert (found.equal, found.worst) == (False, math.inf)
        assert [item.where for item in found.modules] == [where] + ["both"] * (len(MODULES) - 1)
        document = found.to_dict()
        assert document[f"only_in_{where}"] == 1
        assert document["worst"] is None


def test_a_module_of_zeros_on_one_side_only_makes_no_difference(one, tmp_path):
    held = tensors()
    held[f"{KEY}.lora_up.weight"].zero_()
    without = {key: tensor for key, tensor in held.items() if not key.startswith(KEY)}
    zeros, absent = save(held, tmp_path / "z.safetensors", METADATA), written(without, tmp_path)
    found = lt.compare(zeros, absent)
    assert (found.equal, found.worst) == (True, 0.0)


def test_a_wider_rank_with_the_same_delta_is_equal(one, tmp_path):
    held = tensors()
    down, up = held[f"{QUERY}.lora_down.weight"], held[f"{QUERY}.lora_up.weight"]
    noise = torch.randn(3, down.shape[1]).half()
    held[f"{QUERY}.lora_down.weight"] = torch.cat([noise[:1], down, noise[1:]])
    held[f"{QUERY}.lora_up.weight"] = torch.cat([torch.zeros_like(up[:, :1]), up, torch.zeros_like(up[:, :2])], 1)
    held[f"{QUERY}.alpha"] = torch.tensor(2.0 * 7 / 4)
    found = lt.compare(one, written(held, tmp_path))
    assert (found.equal, found.worst) == (True, 0.0)
    assert {item.proof for item in found.modules if item.module == QUERY_NAME} == {"exact"}


def test_another_factoring_of_the_same_delta_is_equal_within_rounding(tmp_path):
    first = tensors(dtype=torch.float32)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    second = dict(first)
    second[f"{QUERY}.lora_down.weight"] = (turn @ first[f"{QUERY}.lora_down.weight"].double()).float()
    second[f"{QUERY}.lora_up.weight"] = (first[f"{QUERY}.lora_up.weight"].double() @ turn.T).float()
    found = lt.compare(save(first, tmp_path / "a.safetensors", METADATA), written(second, tmp_path))
    assert found.equal
    assert 0 < found.worst < 1e-6


def test_error_and_cosine_are_those_of_the_dense_deltas(one, tmp_path):
    first, second = tensors(), tensors(seed=1, rank=6)
    mixed = 0.25
    for stem in MODULES:  # neither equal nor orthogonal
        down, up = first[f"{stem}.lora_down.weight"], first[f"{stem}.lora_up.weight"]
        second[f"{stem}.lora_down.weight"][:4] += mixed * down
        second[f"{stem}.lora_up.weight"][:, :4] += mixed * up
    found = {item.module.rpartition(".")[2]: item for item in lt.compare(one, written(second, tmp_path)).modules}
    for stem, name in ((QUERY, "to_q"), (KEY, "to_k")):
        ours, theirs = (np.asarray(delta(held, stem)) for held in (first, second))
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
        cosine = np.vdot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert 0.001 < abs(cosine) < 0.999
        assert math.isclose(found[name].cosine, cosine, rel_tol=1e-9)
        assert any(
            math.isclose(found[name].relative_error, error * np.linalg.norm(ours) / np.linalg.norm(side), rel_tol=1e-9)
            for side in (ours, theirs)
        )


def test_threads_change_nothing(one, tmp_path):
    other = written(tensors(seed=1), tmp_path)
    assert lt.compare(one, other, threads=4).to_dict() == lt.compare(one, other).to_dict()


def test_a_file_with_nan_is_equal_to_itself_and_comparable_with_nothing_else(one, tmp_path):
    held = tensors()
    held[f"{QUERY}.lora_up.weight"].view(-1)[0] = float("nan")
    other = written(held, tmp_path)
    assert lt.compare(other, other).equal
    with pytest.raises(NonFinite) as caught:
        lt.compare(one, other)
    assert caught.value.key == f"{QUERY}.lora_up.weight"


def test_files_for_different_models_are_refused(sd1, sdxl):
    with pytest.raises(ArchitectureMismatch):
        lt.compare(sd1, sdxl)


def test_an_unknown_key_is_not_passed_over(one, tmp_path):
    with pytest.raises(UnknownKeys):
        lt.compare(one, written({**tensors(), "mystery": torch.ones(2)}, tmp_path))


def test_the_command_line_prints_the_same_document_and_answers_by_its_exit_code(inside, one, tmp_path):
    other = written(tensors(seed=1), tmp_path)
    for a, b, code in ((one, one, 0), (one, other, 1)):
        done = inside("compare", "--json", a, b)
        assert done.returncode == code
        assert json.loads(done.stdout) == json.loads(json.dumps(lt.compare(str(a), str(b)).to_dict()))
