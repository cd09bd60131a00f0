"""resize: judged by a full float64 SVD of each dense delta, by the size that the disk reports, and by byte equality."""

import json
import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.cli.main import cli
from loratools.errors import InternalError, NonFinite, NotRepresentable, UsageError
from loratools.operations.resizing import layers as resizing
from loratools.tensors.lazy import LazyTensor
from tests.formats import making
from tests.operations.making import METADATA, MODULES, QUERY, file, same, tensors

SMALL = {stem: shape for stem, shape in MODULES.items() if math.prod(shape) < 2**20}
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"


def deltas(held):
    """stem → dense float64 delta [out, everything else] of a kohya file."""
    found = {}
    for key in held:
        if key.endswith(".lora_down.weight"):
            stem = key.removesuffix(".lora_down.weight")
            down, up = (held[f"{stem}.lora_{role}.weight"].double().flatten(1) for role in ("down", "up"))
            found[stem] = float(held.get(f"{stem}.alpha", len(down))) / len(down) * (up @ down)
    return found


def far(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def decaying(path, *, rank=16, dtype=torch.float32, metadata=None, modules=SMALL, seed=0):
    """A file whose singular values fall, at a different pace in each layer."""
    made = tensors(rank=rank, dtype=torch.float64, modules=modules, seed=seed)
    for at, stem in enumerate(modules):
        made[f"{stem}.lora_up.weight"] *= torch.logspace(0, -1 - at, rank, dtype=torch.float64)
    save_file({k: t.to(dtype) if t.dim() else t for k, t in made.items()}, path, metadata or METADATA)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_layer_is_the_nearest_of_its_rank(tmp_path, dtype):
    source = decaying(tmp_path / "in.safetensors", dtype=dtype)
    result = lt.resize(source, rank=5).save(tmp_path / "out.safetensors")
    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    assert before.keys() == after.keys()
    lost = whole = 0.0
    rows = {row.module: row for row in result.layers}
    for stem, want in deltas(before).items():
        singular = torch.linalg.svdvals(want)
        best = float(singular[5:].norm() / singular.norm())
        rounding = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6}[dtype]
        assert best * (1 - 1e-9) <= far(deltas(after)[stem], want) <= best + rounding
        assert any(row.error == pytest.approx(best, rel=1e-6) for row in rows.values())
        lost, whole = lost + float(singular[5:].square().sum()), whole + float(singular.square().sum())
        assert after[f"{stem}.lora_down.weight"].dtype == dtype
        assert after[f"{stem}.lora_down.weight"].shape[0] == 5
        assert float(after[f"{stem}.alpha"]) == 5
    assert result.error == pytest.approx(math.sqrt(lost / whole), rel=1e-6)
    assert result.proof.measured == len(SMALL)


@pytest.mark.parametrize(
    "wish", [{"rank": 16}, {"rank": 99}, {"size": 10**9}, {"method": "sv_cumulative", "parameter": 1}]
)
def test_resize_to_full_rank_is_the_identity(tmp_path, wish):
    source = file(tmp_path / "in.safetensors", rank=16, modules=SMALL)
    result = lt.resize(source, **wish).save(tmp_path / "out.safetensors")
    assert same(load_file(source), load_file(tmp_path / "out.safetensors"))
    assert result.error == 0
    assert result.proof.identical == len(SMALL)


@given(
    ranks=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    share=st.floats(0, 1.05),
    half=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_size_is_never_exceeded_and_no_wanted_rank_still_fits(tmp_path, ranks, share, half, seed):
    made = {}
    for rank, (stem, shape) in zip(ranks, SMALL.items(), strict=True):
        made |= tensors(rank=rank, modules={stem: shape}, seed=seed, dtype=torch.float16 if half else torch.float32)
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(made, source, METADATA)
    with pytest.raises(UsageError) as caught:
        lt.resize(source, size=1)
    smallest = caught.value.evidence["needed"] + 8  # the size itself is recorded, and has more digits than 1
    size = int(smallest + share * (source.stat().st_size - smallest))
    result = lt.resize(source, size=size).save(out, overwrite=True)
    assert out.stat().st_size == result.size <= size
    slack = 8 * 3 * len(SMALL)  # a header may grow by some digits
    for row in result.layers:
        unit = (2 if half else 4) * (1536 if "text_encoder" in row.module else 640)
        assert row.new_rank == row.old_rank or size - result.size < unit + slack


def test_a_size_goes_where_the_squares_are_largest(tmp_path):
    source = decaying(tmp_path / "in.safetensors")
    half = lt.resize(source, rank=8).plan
    by_size = lt.resize(source, size=half.size).measure()
    assert by_size.size <= half.size
    assert by_size.error < lt.resize(source, rank=8).measure().error
    assert len({row.new_rank for row in by_size.layers}) > 1


def test_a_size_that_rank_1_does_not_keep_is_refused_with_what_it_takes(tmp_path):
    source = file(tmp_path / "in.safetensors", modules=SMALL)
    with pytest.raises(UsageError) as caught:
        lt.resize(source, size=1000)
    assert caught.value.evidence["needed"] == lt.resize(source, rank=1).save(tmp_path / "out.safetensors").size


@pytest.mark.parametrize(
    ("method", "parameter", "kept"),
    [
        ("sv_ratio", 4, lambda s: int((s > s[0] / 4).sum())),
        ("sv_cumulative", 0.8, lambda s: int((s.cumsum(0) / s.sum() < 0.8).sum()) + 1),
        ("sv_fro", 0.9, lambda s: int((s.square().cumsum(0) / s.square().sum() < 0.81).sum()) + 1),
    ],
)
def test_dynamic_methods_keep_the_values_that_they_name(tmp_path, method, parameter, kept):
    source = decaying(tmp_path / "in.safetensors")
    want = [kept(torch.linalg.svdvals(item)[:16]) for item in deltas(load_file(source)).values()]
    found = lt.resize(source, method=method, parameter=parameter)
    assert sorted(row.new_rank for row in found.plan.layers) == sorted(want)
    most = lt.resize(source, method=method, parameter=parameter, rank=3)
    assert all(row.new_rank <= 3 for row in most.plan.layers)


@pytest.mark.parametrize(("wish", "limit"), [({"error": 0.2}, 0.2), ({"energy": 0.99}, 0.1)])
def test_an_error_and_an_energy_are_kept_by_the_smallest_ranks(tmp_path, wish, limit):
    source = decaying(tmp_path / "in.safetensors")
    result = lt.resize(source, **wish).save(tmp_path / "out.safetensors")
    after = deltas(load_file(tmp_path / "out.safetensors"))
    for stem, want in deltas(load_file(source)).items():
        rank = int(load_file(tmp_path / "out.safetensors")[f"{stem}.alpha"])
        singular = torch.linalg.svdvals(want)
        assert far(after[stem], want) <= limit + 1e-6
        assert float(singular[rank - 1 :].norm() / singular.norm()) > limit
    assert max(row.error for row in result.layers) <= limit


def test_the_bytes_do_not_depend_on_the_threads(tmp_path):
    source = decaying(tmp_path / "in.safetensors")
    for threads in (1, 2, 5):
        lt.resize(source, energy=0.9, threads=threads).save(tmp_path / f"{threads}.safetensors", threads=threads)
    files = {(tmp_path / f"{threads}.safetensors").read_bytes() for threads in (1, 2, 5)}
    assert len(files) == 1


# Formats and spellings


@pytest.fixture(scope="module")
def sdxl_ldm():
    """Kohya keys by sgm's names, convolutions among them."""
    chosen = {"unet": making.LDM["sdxl"][1:4], "text_encoder": making.CLIP[:1]}
    found = making.layers("sdxl", "ldm", chosen=chosen)

    def stem(component, native):
        return making.kohya_stem("sdxl", component, native)

    return making.pairs(found, stem, making.KOHYA, ranks=(6, 9, 7))


def test_keys_and_their_order_stay_as_they_were_read(tmp_path, sdxl_ldm):
    source = making.write(sdxl_ldm, tmp_path / "in.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    result = lt.resize(source, rank=4, conv_rank=2).save(tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    added = {key for key in after if key not in sdxl_ldm}
    assert sdxl_ldm.keys() <= after.keys()
    assert all(key.endswith(".alpha") for key in added)
    convolutions = 0
    for key, tensor in after.items():
        if key.endswith("lora_down.weight"):
            kernel = math.prod(tensor.shape[2:]) > 1
            convolutions += kernel
            assert tensor.shape[0] == (2 if kernel else 4)
            assert tensor.dim() == sdxl_ldm[key].dim()
    assert convolutions
    assert result.format == "kohya"
    want, got = deltas(sdxl_ldm), deltas(after)
    for row in result.layers:
        assert row.error is not None
    for stem, item in want.items():
        rank = after[f"{stem}.lora_down.weight"].shape[0]
        singular = torch.linalg.svdvals(item)
        assert far(got[stem], item) == pytest.approx(float(singular[rank:].norm() / singular.norm()), abs=2e-3)


@pytest.mark.parametrize("to", ["diffusers", "peft", "comfy"])
def test_other_formats_keep_their_own_alphas(tmp_path, to):
    source = decaying(tmp_path / "in.safetensors", dtype=torch.float16)
    name = "out" if to == "peft" else "out.safetensors"
    middle = lt.convert(source, to=to).save(tmp_path / f"middle-{name}").path
    lt.resize(middle, rank=5).save(tmp_path / name)
    again = lt.open(tmp_path / name)
    assert again.format == lt.open(middle).format
    assert {item.rank for item in again.adapters} == {5}
    assert {float(item.scale) for item in again.adapters} == {1.0}
    lt.resize(source, rank=5).save(tmp_path / "direct.safetensors")
    assert lt.compare(tmp_path / name, tmp_path / "direct.safetensors").worst <= 1e-12
    lt.resize(source, rank=5, to=to).save(tmp_path / f"to-{name}")
    assert lt.compare(tmp_path / f"to-{name}", tmp_path / "direct.safetensors").worst <= 1e-12


def test_a_peft_configuration_states_the_new_ranks(tmp_path, peft_folder):
    lt.resize(peft_folder, energy=0.6).save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {tensor.shape[0] for key, tensor in held.items() if "lora_A" in key}
    assert {config["r"], *config["rank_pattern"].values()} == ranks
    assert {config["lora_alpha"], *config["alpha_pattern"].values()} == ranks


@pytest.mark.parametrize("kind", ["loha", "lokr", "tucker", "dora"])
def test_other_kinds_are_resized_as_they_convert(tmp_path, kind):
    chosen = {"unet": ("down_blocks.0.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1")}
    held = {}
    draw = making.Draw(3, torch.float32)
    for component, native, shape in making.layers("sd1", "diffusers", chosen=chosen):
        stem = making.kohya_stem("sd1", component, native)
        held |= {stem + end: tensor for end, tensor in making.kind_factors(kind, shape, draw).items()}
    source = making.write(held, tmp_path / "in.safetensors", {"ss_base_model_version": "sd_v1"})
    result = lt.resize(source, rank=1).save(tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    downs = [tensor for key, tensor in after.items() if key.endswith("lora_down.weight")]
    assert [tensor.shape[0] for tensor in downs] == [1, 1]
    assert 0 < result.error < 1
    if kind == "dora":
        magnitudes = [key for key in held if key.endswith("dora_scale")]
        assert all(after[key].equal(held[key]) for key in magnitudes)
        assert any("inside the norm" in text for text in result.warnings)
    else:
        plain = lt.convert(source, to="kohya", to_kind="lora").save(tmp_path / "plain.safetensors").path
        lt.resize(plain, rank=1).save(tmp_path / "other.safetensors")
        assert lt.compare(tmp_path / "other.safetensors", tmp_path / "out.safetensors").worst < 1e-5


@pytest.mark.parametrize("kind", ["full", "ia3", "glora", "oft"])
def test_what_is_no_low_rank_product_is_refused_with_the_way_out(tmp_path, kind):
    chosen = {"unet": ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",)}
    draw, held = making.Draw(), tensors(modules={QUERY.replace("to_q", "to_k"): (320, 320)})
    for component, native, shape in making.layers("sd1", "diffusers", chosen=chosen):
        stem = making.kohya_stem("sd1", component, native)
        held |= {stem + end: tensor for end, tensor in making.kind_factors(kind, shape, draw).items()}
    source = making.write(held, tmp_path / "in.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(NotRepresentable) as caught:
        lt.resize(source, rank=1)
    assert "--to-kind lora" in caught.value.hint
    assert caught.value.path == str(source)
    assert caught.value.key == QUERY


def test_norms_and_biases_stay_byte_for_byte(tmp_path):
    held = tensors(modules=SMALL)
    held["lora_unet_down_blocks_0_resnets_0_norm1.w_norm"] = torch.randn(320)
    held["lora_unet_down_blocks_0_resnets_0_norm1.b_norm"] = torch.randn(320)
    held[f"{QUERY}.diff_b"] = torch.randn(320)
    save_file(held, tmp_path / "in.safetensors", METADATA)
    lt.resize(tmp_path / "in.safetensors", rank=2).save(tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    for key in held:
        if key.endswith(("_norm", "diff_b")):
            assert after[key].equal(held[key]), key


# What stands around it


def test_notes_of_the_rank_are_renewed_and_hashes_recomputed(tmp_path):
    metadata = {**METADATA, "ss_network_alpha": "2.0", "sshs_model_hash": "f" * 64, "sshs_legacy_hash": "0" * 8}
    file(tmp_path / "in.safetensors", metadata, modules=SMALL)
    result = lt.resize(tmp_path / "in.safetensors", rank=2).save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        found = opened.metadata()
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("2", "2.0")
    assert found["sshs_model_hash"] == result.payload_sha256
    assert found["note"] == "mine"
    record = json.loads(found["loratools.provenance"])
    assert record["operation"] == "resize"
    assert record["parameters"] == {"rank": 2}
    lt.resize(tmp_path / "in.safetensors", energy=0.5).save(tmp_path / "some.safetensors")


def test_nothing_is_computed_for_a_plan_of_ranks(tmp_path, monkeypatch):
    source = file(tmp_path / "in.safetensors", modules=SMALL)
    monkeypatch.setattr("loratools.adapters.resize.spectrum_of_core", lambda *_: pytest.fail("computed"))
    plan = lt.resize(source, rank=2).plan
    assert plan.error is None
    assert {row.new_rank for row in plan.layers} == {2}


def test_a_planned_size_is_the_size_that_is_written(tmp_path):
    source = file(tmp_path / "in.safetensors", modules=SMALL)
    for at, wish in enumerate(
        ({"rank": 3}, {"energy": 0.7}, {"rank": 2, "dtype": "F32"}, {"rank": 2, "to": "diffusers"})
    ):
        pending = lt.resize(source, **wish)
        assert pending.plan.size == pending.save(tmp_path / f"{at}.safetensors").size


def test_a_fault_of_the_arithmetic_is_caught_and_nothing_is_left(tmp_path, monkeypatch):
    source = file(tmp_path / "in.safetensors", modules=SMALL)
    real = resizing.laid_out

    def wrong(made, *arguments, **more):
        first = made.adapters[0]
        off = LazyTensor.computed("F16", first.factors["up"].shape, lambda: first.factors["up"].load() * 1.05)
        spoilt = replace(first, factors={**first.factors, "up": off})
        return real(replace(made, adapters=(spoilt, *made.adapters[1:])), *arguments, **more)

    monkeypatch.setattr(resizing, "laid_out", wrong)
    with pytest.raises(InternalError, match="does not make the delta"):
        lt.resize(source, rank=3).save(tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors"]


def test_nan_is_refused_with_its_key(tmp_path):
    held = tensors(modules=SMALL)
    held[f"{QUERY}.lora_up.weight"][0, 0] = torch.nan
    save_file(held, tmp_path / "in.safetensors", METADATA)
    with pytest.raises(NonFinite) as caught:
        lt.resize(tmp_path / "in.safetensors", rank=2).save(tmp_path / "out.safetensors")
    assert caught.value.key == QUERY
    assert not (tmp_path / "out.safetensors").exists()


def test_rounding_that_costs_much_is_told(tmp_path):
    held = tensors(modules=SMALL, dtype=torch.float32)
    for key in held:
        if "lora_" in key and not key.endswith("alpha"):
            held[key] *= 1e-6
    save_file(held, tmp_path / "in.safetensors", METADATA)
    result = lt.resize(tmp_path / "in.safetensors", rank=2, dtype="F16").save(tmp_path / "out.safetensors")
    assert any("--dtype float32" in text for text in result.warnings)
    got = deltas(load_file(tmp_path / "out.safetensors"))[QUERY]
    whole = deltas(held)[QUERY]
    assert far(got, whole) <= result.proof.worst * (1 + 1e-6)


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"rank": 0},
        {"error": 0.1, "energy": 0.9},
        {"rank": 2, "error": 0.1},
        {"size": 10**6, "energy": 0.9},
        {"method": "sv_ratio"},
        {"method": "sv_ratio", "parameter": 0.5},
        {"method": "sv_fro", "parameter": 2},
        {"method": "best", "parameter": 2},
        {"rank": 2, "parameter": 2},
    ],
)
def test_wishes_that_make_no_sense_are_refused(sd1, wish):
    with pytest.raises(UsageError):
        lt.resize(sd1, **wish)


def run(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


def test_the_command_says_what_it_cost(tmp_path):
    source = decaying(tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    done = run("resize", source, out, "--size", "60kB", "--json")
    document = json.loads(done.stdout)
    assert document["schema"] == "loratools.resize/1"
    assert document["size"] == out.stat().st_size <= 60_000
    assert 0 < document["error"] < 1
    assert sum(row["layers"] for row in document["ranks"]) == len(SMALL)
    words = ("resize", "--model", source, "--save_to", tmp_path / "kohya.safetensors", "--new_rank", "4")
    done = run(*words, "--dynamic_method", "sv_ratio", "--dynamic_param", "3", "--save_precision", "bf16", "-v")
    assert "relative error" in done.stdout
    assert {t.dtype for k, t in load_file(tmp_path / "kohya.safetensors").items() if "lora_" in k and t.dim()} == {
        torch.bfloat16
    }
    again = run("resize", source, out, "--size", "60kB", "--if-needed")
    assert "nothing to do" in again.stdout
    plan = run("resize", source, "--rank", "3", "--dry-run", "--json")
    assert json.loads(plan.stdout)["error"] > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_how_far_measuring_has_come_is_told_before_a_rank_is_known(tmp_path, threads):
    source, told = decaying(tmp_path / "in.safetensors"), []
    pending = lt.resize(source, error=0.3, threads=threads, progress=lambda *told_now: told.append(told_now))
    assert len(told) == len(SMALL)
    whole = sum(item.nbytes for item in pending.lora.adapters)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {whole}
    assert told[-1] == (whole, whole)
    assert (
        lt.resize(source, rank=2, progress=told.append).plan.layers[0].error is None
    )  # nothing is measured for a rank


def test_the_command_shows_how_far_measuring_has_come(tmp_path, monkeypatch):
    source = decaying(tmp_path / "in.safetensors")
    monkeypatch.setattr("loratools.cli.progress.QUIET_SECONDS", 0)
    for how in (["--rank", "2", "--dry-run"], ["--error", "0.3"]):
        said = CliRunner().invoke(cli, ["resize", str(source), str(tmp_path / "out.safetensors"), *how])
        assert said.exit_code == 0
        assert "measure: " in said.stderr
        assert " measured, " in said.stderr
        assert "now proving" not in said.stderr.split("measured")[0]
    quiet = CliRunner().invoke(cli, ["resize", str(source), str(tmp_path / "b.safetensors"), "--error", "0.3", "-q"])
    assert "measure" not in quiet.stderr
