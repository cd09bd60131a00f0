"""combine: judged by a float64 sum of dense deltas, by peft's own functions, and by what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.adapters.kind import delta_of
from loratools.cli.main import cli
from loratools.errors import ArchitectureMismatch, InternalError, NotRepresentable, UsageError
from loratools.operations.combine import METHODS
from tests.formats import making
from tests.operations.making import KEY, METADATA, MODULES, QUERY, delta, file, tensors

SMALL = {stem: shape for stem, shape in MODULES.items() if math.prod(shape) < 2**20}
ELECTIONS = ("ties", "dare_ties", "dare_linear", "magnitude_prune")


def dense(reference):
    """(component, path) → float64 delta [out, everything else] of every layer of any file, path by path."""
    found = {}
    for item in lt.open(reference).adapters:
        made = delta_of(item, dtype="float64").flatten(1)
        for path, rows in zip(item.target.paths, made.split(item.target.sizes(len(made))), strict=True):
            found[item.target.component, path] = rows
    return found


def summed(*terms):
    """Σ weight · delta by place, of (reference, weight)."""
    total = {}
    for reference, weight in terms:
        for place, made in dense(reference).items():
            total[place] = total.get(place, 0) + weight * made
    return total


def worst(ours, theirs):
    """The largest relative error over all places; a place that only one has must be zero there."""
    found = 0.0
    for place in {*ours, *theirs}:
        one, other = ours.get(place), theirs.get(place)
        if one is None or other is None:
            assert not bool((other if one is None else one).any()), place
            continue
        found = max(found, float((one - other).norm() / other.norm()) if bool(other.any()) else float(one.norm()))
    return found


@given(
    inputs=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([0.5, 1.0, 3.0, 4.0]), st.floats(-2, 2, width=16), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 9),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_concat_is_the_weighted_sum(tmp_path, inputs, seed):
    terms = []
    for at, (rank, alpha, weight, half) in enumerate(inputs):
        modules = dict(list(SMALL.items())[at % 2 :])
        dtype = torch.float16 if half else torch.bfloat16
        made = file(
            tmp_path / f"{at}.safetensors", rank=rank, alpha=alpha, seed=seed + at, dtype=dtype, modules=modules
        )
        terms.append((made, weight))
    out = tmp_path / "out.safetensors"
    lt.combine(terms).save(out, overwrite=True)
    assert worst(dense(out), summed(*terms)) <= 2e-7


def test_where_all_scales_are_one_the_bytes_are_the_inputs(tmp_path):
    a = file(tmp_path / "a.safetensors", rank=4, alpha=2, modules=SMALL)
    b = file(tmp_path / "b.safetensors", rank=6, alpha=3, seed=1, modules=SMALL)
    result = lt.combine([a, (b, -1)]).save(tmp_path / "out.safetensors")
    first, second, made = load_file(a), load_file(b), load_file(tmp_path / "out.safetensors")
    for stem in SMALL:
        down, up = (made[f"{stem}.lora_{role}.weight"] for role in ("down", "up"))
        assert down.equal(torch.cat([first[f"{stem}.lora_down.weight"], second[f"{stem}.lora_down.weight"]]))
        assert up.equal(torch.cat([first[f"{stem}.lora_up.weight"], -second[f"{stem}.lora_up.weight"]], 1))
        assert float(made[f"{stem}.alpha"]) == 5
    assert worst(dense(tmp_path / "out.safetensors"), summed((a, 1), (b, -1))) == pytest.approx(0, abs=1e-15)
    assert result.error == 0


def test_one_input_of_weight_1_comes_out_as_it_went_in(tmp_path, sdxl):
    result = lt.combine([sdxl]).save(tmp_path / "out.safetensors")
    making.assert_same_tensors(load_file(tmp_path / "out.safetensors"), load_file(sdxl))
    assert result.proof.identical == len(result.layers)


@pytest.mark.parametrize("weight", [0.5, 0.7])
def test_a_weight_goes_into_the_factors_where_the_file_has_no_place_for_an_alpha(tmp_path, weight):
    layers = making.layers("sd1", "diffusers", only=["unet"])
    plain = making.pairs(layers, lambda part, name: f"{part}.{name}", making.PEFT, with_alpha=False)
    source = making.write(plain, tmp_path / "in.safetensors")
    lt.combine([(source, weight)]).save(tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == plain.keys()
    assert worst(dense(tmp_path / "out.safetensors"), summed((source, weight))) <= 1e-6


def test_the_same_file_twice_is_twice_the_delta_and_minus_itself_nothing(tmp_path):
    a = file(tmp_path / "a.safetensors", modules=SMALL)
    lt.combine([a, a]).save(tmp_path / "twice.safetensors")
    assert worst(dense(tmp_path / "twice.safetensors"), summed((a, 2))) <= 1e-14
    for at, method in enumerate(METHODS):
        how = {"rank": 2} if method == "svd" else {"density": 0.5} if method in ELECTIONS else {}
        if method.startswith("dare"):
            how["density"] = 1.0
        out = tmp_path / f"{at}.safetensors"
        lt.combine([(a, 0.7), (a, -0.7)], method=method, **how).save(out)
        largest = max(float(item.norm()) for item in dense(a).values())
        assert all(float(item.norm()) <= 1e-6 * largest for item in dense(out).values()), method


def test_a_weight_of_zero_leaves_no_trace(tmp_path):
    a = file(tmp_path / "a.safetensors", modules={QUERY: (320, 320)})
    b = file(tmp_path / "b.safetensors", seed=1, modules=SMALL)
    result = lt.combine([a, (b, 0)]).save(tmp_path / "out.safetensors")
    assert worst(dense(tmp_path / "out.safetensors"), dense(a)) == 0
    assert any("weight 0" in text for text in result.warnings)
    lt.combine([(a, 0), (b, 0)]).save(tmp_path / "zero.safetensors")
    assert all(not bool(item.any()) for item in dense(tmp_path / "zero.safetensors").values())
    assert len(dense(tmp_path / "zero.safetensors")) == len(SMALL)


@pytest.mark.parametrize(("method", "rank"), [("linear", None), ("svd", 3)])
def test_a_cut_sum_is_the_nearest_of_its_rank(tmp_path, method, rank):
    a = file(tmp_path / "a.safetensors", rank=4, modules=SMALL, dtype=torch.float32)
    b = file(tmp_path / "b.safetensors", rank=6, seed=1, modules=SMALL, dtype=torch.float32)
    result = lt.combine([(a, 0.7), (b, -0.4)], method=method, rank=rank).save(tmp_path / "out.safetensors")
    got, kept = dense(tmp_path / "out.safetensors"), rank or 6
    errors = []
    for place, want in summed((a, 0.7), (b, -0.4)).items():
        singular = torch.linalg.svdvals(want)
        errors.append(float(singular[kept:].norm() / singular.norm()))
        assert float((got[place] - want).norm() / want.norm()) == pytest.approx(errors[-1], rel=1e-5)
    assert sorted(row.error for row in result.layers) == pytest.approx(sorted(errors), rel=1e-5)
    assert {row.rank for row in result.layers} == {kept}


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
@pytest.mark.parametrize("rank", [None, 320])
def test_elections_are_pefts_on_dense_deltas(tmp_path, method, rank):
    modules = {QUERY: (320, 320), KEY: (320, 320)}
    a = file(tmp_path / "a.safetensors", rank=4, modules=modules, dtype=torch.float32)
    b = file(tmp_path / "b.safetensors", rank=6, seed=1, modules=modules, dtype=torch.float32)
    result = lt.combine([(a, 0.7), (b, 0.4)], method=method, density=0.3, rank=rank).save(tmp_path / "o.safetensors")
    first, second, got = load_file(a), load_file(b), load_file(tmp_path / "o.safetensors")
    for stem in modules:
        deltas = [delta(held, stem).float() for held in (first, second)]
        want = getattr(merge_utils, method)(deltas, torch.tensor([0.7, 0.4]), 0.3).double()
        singular = torch.linalg.svdvals(want)
        best = float(singular[rank or 6 :].norm() / singular.norm())
        far = float((delta(got, stem) - want).norm() / want.norm())
        assert far == pytest.approx(best, rel=1e-3, abs=2e-3)  # elements near the threshold may fall either way
        assert any(row.error == pytest.approx(best, rel=1e-3, abs=1e-6) for row in result.layers)


def test_dare_depends_on_the_seed_alone(tmp_path):
    a, b = (file(tmp_path / f"{at}.safetensors", seed=at, modules=SMALL) for at in (0, 1))
    for name, seed, threads in (("x", 1, 1), ("y", 1, 3), ("z", 2, 1)):
        how = {"method": "dare_linear", "density": 0.5, "rank": 30, "seed": seed}
        lt.combine([a, b], **how).save(tmp_path / f"{name}.safetensors", threads=threads)
    x, y, z = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "xyz")
    assert x == y != z


# Formats, groupings, kinds


def test_formats_of_all_sorts_combine(tmp_path):
    a = file(tmp_path / "a.safetensors", rank=4, modules=SMALL)
    b = file(tmp_path / "b.safetensors", rank=6, seed=1, modules=SMALL)
    lt.convert(b, to="diffusers").save(tmp_path / "b-diffusers.safetensors")
    lt.convert(b, to="peft").save(tmp_path / "b-peft")
    want = summed((a, 0.5), (b, 2))
    for at, (left, right) in enumerate(((a, "b-diffusers.safetensors"), (a, "b-peft"))):
        for to in (None, "peft", "diffusers"):
            out = tmp_path / (f"{at}-{to}" + ("" if to == "peft" else ".safetensors"))
            result = lt.combine([(left, 0.5), (tmp_path / right, 2)], to=to).save(out)
            assert result.format == (to or "kohya")
            assert worst(dense(out), want) <= 2e-7
    out = tmp_path / "other.safetensors"
    result = lt.combine([(tmp_path / "b-diffusers.safetensors", 2), (a, 0.5)]).save(out)
    assert result.format == "diffusers"
    assert worst(dense(out), want) <= 2e-7


def flux(tmp_path, naming, seed, ranks):
    """A small Flux file by BFL's names, whose qkv is fused, or by diffusers', where it is not."""
    chosen = {
        "bfl": ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj"),
        "diffusers": (
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.0.attn.to_v",
            "single_transformer_blocks.3.attn.to_k",
        ),
    }[naming]
    found = making.layers("flux1", naming, chosen={"transformer": chosen})
    if naming == "bfl":
        held = making.pairs(found, lambda c, n: making.kohya_stem("flux1", c, n), making.KOHYA, ranks=ranks, seed=seed)
    else:
        held = making.pairs(
            found, lambda _, n: f"transformer.{n}", making.PEFT, ranks=ranks, seed=seed, with_alpha=False
        )
    return making.write(held, tmp_path / f"{naming}.safetensors")


def images(*terms):
    """Σ weight · delta · x by place, for a few columns x: from the factors, because these layers are large."""
    total = {}
    for reference, weight in terms:
        for item in lt.open(reference).adapters:
            down, up = (item.factors[role].load().double() for role in ("down", "up"))
            x = torch.randn(down.shape[1], 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
            made = weight * float(item.scale) * (up @ (down @ x))
            for path, rows in zip(item.target.paths, made.split(item.target.sizes(len(made))), strict=True):
                total[path] = total.get(path, 0) + rows
    return total


def test_fused_and_split_layers_meet_at_their_finest_paths(tmp_path):
    fused, split = flux(tmp_path, "bfl", 1, (3, 2)), flux(tmp_path, "diffusers", 2, (4,))
    for at, terms in enumerate((((fused, 0.7), (split, -0.3)), ((split, -0.3), (fused, 0.7)))):
        out = tmp_path / f"{at}.safetensors"
        lt.combine(terms).save(out)
        assert worst(images((out, 1)), images(*terms)) <= 2e-7


@pytest.mark.parametrize("kind", ["loha", "lokr", "tucker", "full"])
def test_kinds_that_are_sums_of_columns_combine_with_lora(tmp_path, kind):
    chosen = {"unet": ("down_blocks.0.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1")}
    draw, held, plain = making.Draw(3, torch.float32), {}, {}
    for component, native, shape in making.layers("sd1", "diffusers", chosen=chosen):
        stem = making.kohya_stem("sd1", component, native)
        held |= {stem + end: tensor for end, tensor in (making.kind_factors(kind, shape, draw) or {}).items()}
        plain |= {stem + end: tensor for end, tensor in making.kind_factors("lora", shape, draw).items()}
    metadata = {"ss_base_model_version": "sd_v1"}
    a = making.write(held, tmp_path / "a.safetensors", metadata)
    b = making.write(plain, tmp_path / "b.safetensors", metadata)
    out = tmp_path / "out.safetensors"
    lt.combine([(a, 0.7), (b, -0.4)]).save(out)
    assert worst(dense(out), summed((a, 0.7), (b, -0.4))) <= 3e-7
    kinds = {item.kind for item in lt.open(out).adapters}
    assert kinds == ({"lora", "full"} if kind == "full" else {"lora"})
    if kind == "full":
        bias = next(tensor for key, tensor in load_file(out).items() if key.endswith("diff_b"))
        want = next(tensor for key, tensor in held.items() if key.endswith("diff_b"))
        assert torch.allclose(bias.double(), 0.7 * want.double(), rtol=1e-6)


def test_biases_and_norms_add_up(tmp_path):
    made = []
    for at in (0, 1):
        held = tensors(modules=SMALL, seed=at)
        held[f"{QUERY}.diff_b"] = torch.randn(320)
        held["lora_unet_down_blocks_0_resnets_0_norm1.w_norm"] = torch.randn(320)
        held["lora_unet_down_blocks_0_resnets_0_norm1.b_norm"] = torch.randn(320)
        save_file(held, tmp_path / f"{at}.safetensors", METADATA)
        made.append(held)
    for at, how in enumerate(({}, {"method": "svd", "rank": 3}, {"method": "ties", "density": 0.5})):
        out = tmp_path / f"out-{at}.safetensors"
        lt.combine([(tmp_path / "0.safetensors", 0.5), (tmp_path / "1.safetensors", -2)], **how).save(out)
        got = load_file(out)
        for key in made[0]:
            if key.endswith(("_norm", "diff_b")):
                want = 0.5 * made[0][key].double() - 2 * made[1][key].double()
                assert torch.allclose(got[key].double(), want, rtol=1e-6), (how, key)


def test_what_does_not_add_up_is_refused_with_the_reason(tmp_path):
    chosen = {"unet": ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",)}
    plain = file(tmp_path / "plain.safetensors", modules={QUERY: (320, 320)})
    reasons = {"dora": "magnitude", "ia3": "base weight", "oft": "base weight", "glora": "base weight"}
    for kind, reason in reasons.items():
        held, draw = {}, making.Draw()
        for component, native, shape in making.layers("sd1", "diffusers", chosen=chosen):
            stem = making.kohya_stem("sd1", component, native)
            held |= {stem + end: tensor for end, tensor in making.kind_factors(kind, shape, draw).items()}
        other = making.write(held, tmp_path / f"{kind}.safetensors", {"ss_base_model_version": "sd_v1"})
        with pytest.raises(NotRepresentable, match=reason) as caught:
            lt.combine([plain, other])
        assert caught.value.path == str(other)
        assert "--to-kind lora" in caught.value.hint
        lt.combine([other]).save(tmp_path / f"alone-{kind}.safetensors")  # one of weight 1 is no sum
        making.assert_same_tensors(load_file(tmp_path / f"alone-{kind}.safetensors"), held)


def test_files_for_different_models_are_refused_by_name(sd1, sdxl):
    with pytest.raises(ArchitectureMismatch) as caught:
        lt.combine([sd1, sdxl])
    assert caught.value.exit_code == 4
    assert str(sd1) in caught.value.message
    assert str(sdxl) in caught.value.message
    assert "sdxl" in caught.value.message


def test_a_layer_of_two_sizes_is_refused_by_name(tmp_path):
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    for name, rows in (("a", 64), ("b", 128)):
        held = {f"{stem}.lora_A.weight": torch.ones(2, 64), f"{stem}.lora_B.weight": torch.ones(rows, 2)}
        making.write_peft(held, tmp_path / name)
    with pytest.raises(ArchitectureMismatch, match="q_proj") as caught:
        lt.combine([tmp_path / "a", tmp_path / "b"])
    assert caught.value.evidence == {"expected": [64, 64], "found": [128, 64]}


def test_metadata_is_what_all_inputs_say(tmp_path):
    a = file(tmp_path / "a.safetensors", {**METADATA, "ss_network_alpha": "2.0"}, modules=SMALL)
    b = file(
        tmp_path / "b.safetensors", {**METADATA, "ss_network_alpha": "2.0", "note": "yours"}, modules=SMALL, seed=1
    )
    lt.combine([a, (b, 0.5)]).save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        found = opened.metadata()
    assert found["ss_base_model_version"] == "sd_v1"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("8", "8.0")
    assert "note" not in found
    record = json.loads(found["loratools.provenance"])
    assert [item["name"] for item in record["inputs"]] == ["a.safetensors", "b.safetensors"]
    assert record["parameters"]["weights"] == [1.0, 0.5]


def test_a_fault_of_the_arithmetic_is_caught_and_nothing_is_left(tmp_path, monkeypatch):
    a = file(tmp_path / "a.safetensors", modules=SMALL)
    b = file(tmp_path / "b.safetensors", modules=SMALL, seed=1)
    real = lt.combine([(a, 0.7), b])
    wrong = lt.combine([(a, 0.71), b])
    spoilt = replace(real, output=wrong.output)
    with pytest.raises(InternalError, match="does not make the delta"):
        spoilt.save(tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    "how",
    [
        {"method": "average"},
        {"method": "svd"},
        {"method": "concat", "rank": 4},
        {"method": "linear", "rank": 4},
        {"method": "ties"},
        {"method": "ties", "density": 0},
        {"method": "concat", "density": 0.5},
        {"method": "svd", "rank": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(sd1, how):
    with pytest.raises(UsageError):
        lt.combine([sd1, sd1], **how)
    with pytest.raises(UsageError):
        lt.combine([])
    with pytest.raises(UsageError):
        lt.combine([(sd1, math.inf)])


def run(*words, code=0):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def test_the_command_takes_weights_behind_the_last_equals_sign(tmp_path):
    a = file(tmp_path / "a.safetensors", modules=SMALL)
    b = file(tmp_path / "b=0.5", modules=SMALL, seed=1)  # a path, whole
    b = b.rename(tmp_path / "b=0.5.safetensors")
    out = tmp_path / "out.safetensors"
    document = json.loads(run("combine", f"{a}=-0.5", b, f"{b}=2", "-o", out, "--json").stdout)
    assert document["schema"] == "loratools.combine/1"
    assert [item["weight"] for item in document["inputs"]] == [-0.5, 1, 2]
    assert worst(dense(out), summed((a, -0.5), (b, 3))) <= 2e-7
    assert "nothing to do" in run("combine", f"{a}=-0.5", b, f"{b}=2", "-o", out, "--if-needed").stdout
    plan = json.loads(run("combine", a, b, "--dry-run", "--json").stdout)
    assert plan["schema"] == "loratools.combine-plan/1"
    assert "LORA is missing" in run("combine", "-o", out, code=2).output
    words = ("combine", "--models", a, b, "--ratios", "0.25", "4", "--save_to", tmp_path / "kohya.safetensors", "-v")
    assert "relative error" in run(*words, "--method", "svd", "--new_rank", "2", "--save_precision", "fp16").stdout
    assert run("combine", a, "-o", a, code=2)


def test_modules_saved_whole_are_no_deltas_and_embeddings_go_along(tmp_path):
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    for name, seed in (("a", 0), ("b", 1)):
        draw = making.Draw(seed, torch.float32)
        held = {f"{stem}.lora_A.weight": draw(2, 64), f"{stem}.lora_B.weight": draw(64, 2)}
        making.write_peft({**held, "base_model.model.lm_head.weight": draw(8, 4)}, tmp_path / name)
    with pytest.raises(NotRepresentable, match="lm_head"):
        lt.combine([tmp_path / "a", tmp_path / "b"])
    result = lt.combine([tmp_path / "a", tmp_path / "b"], allow_lossy=True).save(tmp_path / "out")
    assert len(result.lost) == 2
    result = lt.combine([(tmp_path / "a", 2), (tmp_path / "b", 0)], allow_lossy=True).save(tmp_path / "one")
    assert worst(dense(tmp_path / "one"), summed((tmp_path / "a", 2))) <= 1e-15
    for name in "ab":
        held = tensors(modules=SMALL)
        held[f"bundle_emb.{name}.string_to_param.*"] = torch.randn(2, 768)
        save_file(held, tmp_path / f"{name}.safetensors", METADATA)
    lt.combine([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).save(tmp_path / "both.safetensors")
    found = load_file(tmp_path / "both.safetensors")
    assert {"bundle_emb.a.string_to_param.*", "bundle_emb.b.string_to_param.*"} <= found.keys()


def test_scales_of_every_sort_and_biases_of_pefts_own_add_up(tmp_path):
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    draw, truth = making.Draw(1, torch.float32), 0
    cases = {"plain": {"lora_alpha": 3}, "rs": {"lora_alpha": 3, "use_rslora": True}, "ada": {"peft_type": "ADALORA"}}
    for name, config in cases.items():
        down, up, bias, singular = draw(6, 64), draw(48, 6), draw(48), draw(6, 1)
        ends = (".lora_A", ".lora_B") if name == "ada" else (".lora_A.weight", ".lora_B.weight")
        held = {stem + ends[0]: down, stem + ends[1]: up}
        scale = {"plain": 0.5, "rs": 3 / 6**0.5, "ada": 5 / 12.00001}[name]
        if name == "ada":
            held[f"{stem}.lora_E"] = singular
            config |= {"init_r": 12, "lora_alpha": 5}
            down = down * singular
        else:
            held[f"{stem}.lora_B.bias"] = bias
            config |= {"lora_bias": True}
        making.write_peft(held, tmp_path / name, **{"r": 6, **config})
        truth = truth + 0.3 * scale * (up.double() @ down.double())
    for at, how in enumerate(({}, {"method": "svd", "rank": 18})):
        lt.combine([(tmp_path / name, 0.3) for name in cases], **how).save(tmp_path / f"out-{at}")
        (made,) = dense(tmp_path / f"out-{at}").values()
        assert float((made - truth).norm() / truth.norm()) <= 2e-7
