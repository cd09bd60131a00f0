"""Two thousand damaged adapters: never an exception but our own, never accepted what safetensors refuses."""

import time
from collections import Counter

import pytest

from loratools.errors import LoratoolsError
from tests.reliability.invariants import check_ended_well, command, contents
from tests.reliability.mutations import SEEDS, judge, mutate

CASES, BLOCK = 2000, 200
SLOWEST = 2.0


@pytest.mark.parametrize("block", range(CASES // BLOCK))
def test_damage_never_escapes_and_is_never_read_where_safetensors_refuses(block):
    found = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        started = time.process_time()
        try:
            found[judge(mutate(seed))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        assert time.process_time() - started < SLOWEST, seed
    assert min(found["parsed"], found["read"], found["refused"]) > BLOCK // 50, found


@pytest.mark.parametrize("seed", range(0, CASES, 20))
def test_damaged_file_converts_whole_or_not_at_all(tmp_path, seed):
    (tmp_path / "in.safetensors").write_bytes(mutate(seed))
    out = tmp_path / "out.safetensors"
    before = contents(tmp_path)
    done = command("convert", tmp_path / "in.safetensors", out, "--to", "diffusers")
    check_ended_well(done)
    after = contents(tmp_path)
    if done.code == 0:
        del after[out.name]
        assert command("compare", tmp_path / "in.safetensors", out).code in (0, 3, 7)
    assert after == before


@pytest.mark.parametrize("data", SEEDS)
def test_undamaged_file_is_parsed(data):
    assert judge(data) == "parsed"


def test_a_judge_that_sees_another_shape_is_heard(monkeypatch):
    import safetensors

    real = safetensors.deserialize
    monkeypatch.setattr(
        safetensors, "deserialize", lambda data: [(key, {**item, "shape": [9]}) for key, item in real(data)]
    )
    with pytest.raises(AssertionError):
        judge(SEEDS[0])


def test_an_exception_that_is_not_ours_is_heard(monkeypatch):
    from tests.reliability import mutations

    monkeypatch.setattr(mutations, "parse", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge(SEEDS[0])
    assert not issubclass(ZeroDivisionError, LoratoolsError)
