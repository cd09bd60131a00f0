"""Applied to live pipelines: the right change in every module by either way, and every bit back afterwards."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.errors import NonFinite, NotRepresentable, PartialMatch, UsageError
from loratools.pipelines.live import components, weight_of
from tests.judges import by_kohya, by_lycoris, by_peft
from tests.judges.fresh import fresh
from tests.judges.live import answers, bits, changes, distance, equal, models, same_bits
from tests.judges.truth import compare

EXACT = 1e-6
SCALE = 0.7

# Each takes its own way through a live model: norms, biases, whole weights, kernels, deltas that need the weight.
KINDS = ("loha-dora", "dora-input", "full", "norm", "ia3", "glora", "diag-oft-rescaled")


def load(folder, **how):
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **how)


@pytest.fixture(scope="module")
def sd1(pipeline):
    """A live tiny SD1 pipeline, its bits, and its answers."""
    pipe = fresh(pipeline("sd1"))
    return pipe, bits(pipe), answers(pipe)


@pytest.fixture(scope="module")
def small(pipeline, tmp_path_factory):
    """A kohya file over a few modules of both components."""
    out = tmp_path_factory.mktemp("small") / "small.safetensors"
    return by_kohya.make(
        pipeline("sd1"), out, architecture="sd1", components={"unet": None, "text_encoder": None}, most=9
    )


@pytest.fixture
def live(sd1):
    """The live pipeline; every test that takes it gives every bit back, with no layer of PEFT's left."""
    pipe, before, answer = sd1
    yield pipe
    assert same_bits(pipe, before)
    assert equal(answers(pipe), answer)
    for model in models(pipe).values():
        assert not hasattr(model, "peft_config")
        assert not any(type(part).__module__.startswith("peft.") for part in model.modules())


def judged(pipe, before, truth, scale, tolerance=EXACT):
    """Assert that weights and biases changed as the truth says, and no others did."""
    for found, wanted in (
        (changes(pipe, before), truth.deltas),
        (changes(pipe, before, "bias"), truth.biases),
    ):
        scaled = {where: scale * delta for where, delta in wanted.items() if bool(delta.any())}
        weights = {where: _norm(pipe, where) for where in scaled}
        judgement = compare(found, scaled)
        assert not judgement.missing
        assert not judgement.unexpected
        for where, delta in scaled.items():  # relative to the weight, which the sum was rounded with
            error = (found[where].reshape(delta.shape) - delta).norm()
            assert error <= tolerance * (weights[where] + delta.norm()), where


def _norm(pipe, where):
    component, path = where
    return weight_of(components(pipe)[component], path).detach().double().norm()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_live_weights_as_its_own_layers_do(kind, live, sd1, pipeline, tmp_path):
    truth = by_lycoris.make(pipeline("sd1"), tmp_path / "lycoris.safetensors", kind)
    with lt.apply(live, truth.path, how="weights", arch="sd1") as applied:
        assert {row.way for row in applied.modules} == {"weights"}
        judged(live, sd1[1], truth, 1.0, 1e-5 if kind in by_lycoris.FLOAT32_INSIDE else EXACT)


@pytest.mark.parametrize("how", ["auto", "weights"])
def test_both_ways_make_the_change_that_the_file_means(how, live, sd1, third_party):
    truth, way = third_party("kohya", "sd1"), "peft" if how == "auto" else how
    with lt.apply(live, truth.path, SCALE, how=how, arch="sd1") as applied:
        assert {row.way for row in applied.modules} == {way}
        assert {(row.component, row.path) for row in applied.modules} == set(truth.deltas)
        judged(live, sd1[1], truth, SCALE)


@pytest.mark.parametrize("architecture", ["sdxl", "flux1"])
def test_second_encoders_and_fused_layers_find_their_live_modules(architecture, pipeline, tmp_path):
    pipe = fresh(pipeline(architecture))
    truth = by_kohya.make(
        pipeline(architecture),
        tmp_path / "lora.safetensors",
        architecture=architecture,
        components=dict.fromkeys(models(pipe)) if architecture == "sdxl" else {"transformer": None},
        most=8,
    )
    before = bits(pipe)
    for how in ("peft", "weights"):
        with lt.apply(pipe, truth.path, SCALE, how=how):
            judged(pipe, before, truth, SCALE)
        assert same_bits(pipe, before)


def test_weights_in_place_are_those_that_merge_writes_bit_for_bit(pipeline, third_party, tmp_path):
    dtype = torch.bfloat16
    load(pipeline("flux1"), torch_dtype=dtype).save_pretrained(tmp_path / "half")
    truth = third_party("kohya", "flux1")
    lt.merge(tmp_path / "half", [(truth.path, SCALE)], tmp_path / "merged")
    pipe, merged = (load(tmp_path / name, torch_dtype=dtype) for name in ("half", "merged"))
    before = bits(pipe)
    applied = lt.apply(pipe, truth.path, SCALE, how="weights")
    assert same_bits(pipe, bits(merged))
    assert not same_bits(pipe, before)
    applied.remove()
    assert same_bits(pipe, before)


def test_two_adapters_are_summed_from_the_original_as_merge_sums_them(live, sd1, small, pipeline, tmp_path):
    kohya = small.path
    dora = by_peft.make(
        pipeline("sd1"), tmp_path / "dora", architecture="sd1", container="peft", components={"unet": None}, most=20,
        use_dora=True,
    ).path  # fmt: skip
    lt.merge(pipeline("sd1"), [(kohya, SCALE), (dora, 0.5)], tmp_path / "merged", arch="sd1")
    merged = bits(load(tmp_path / "merged"))
    first = lt.apply(live, kohya, how="weights", arch="sd1")
    second = lt.apply(live, dora, 0.5, how="weights", keep="file")
    first.set_scale(SCALE)
    assert same_bits(live, merged)
    first.remove()
    alone = bits(live)
    second.remove()
    with lt.apply(live, dora, 0.5, how="weights"):
        assert same_bits(live, alone)


def test_the_two_ways_answer_alike_and_as_load_lora_weights_does(live, third_party):
    path = third_party("diffusers", "sd1").path
    theirs = copy.deepcopy(live)
    theirs.load_lora_weights(path, adapter_name="theirs")
    theirs.set_adapters(["theirs"], [SCALE])
    wanted = answers(theirs)
    for how in ("peft", "weights"):
        with lt.apply(live, path, SCALE, how=how):
            assert distance(answers(live), wanted) < 1e-5


@pytest.mark.parametrize("how", ["peft", "weights"])
def test_a_scale_is_linear_by_component_and_nothing_at_zero(how, live, sd1, small):
    truth = small
    _, before, answer = sd1
    applied = lt.apply(live, truth.path, 0, how=how, arch="sd1")
    assert equal(answers(live), answer)
    applied.set_scale(-1.5)
    judged(live, before, truth, -1.5)
    applied.set_scale({"text_encoder": 0})
    assert applied.scales == {"unet": -1.5, "text_encoder": 0}
    found = changes(live, before)
    assert {component for component, _ in found} == {"unet"}
    applied.set_scale("unet=0")
    assert equal(answers(live), answer)
    with pytest.raises(UsageError, match="no component 'unett'"):
        applied.set_scale({"unett": 1})
    applied.remove()
    applied.remove()
    with pytest.raises(UsageError, match="taken out"):
        applied.set_scale(1)


def test_patterns_weigh_layers_in_both_ways(live, sd1, small):
    path = small.path
    found = {}
    for how in ("peft", "weights"):
        with lt.apply(live, path, how=how, arch="sd1", weights=["unet.down_blocks.*=0.25", "text_encoder.*=0"]):
            found[how] = changes(live, sd1[1])
    assert found["peft"].keys() == found["weights"].keys()
    assert all(component == "unet" for component, _ in found["peft"])
    truth = small.deltas
    for (component, path), delta in found["peft"].items():
        share = 0.25 if path.startswith("down_blocks.") else 1
        wanted = share * truth[component, path]
        assert (delta.reshape(wanted.shape) - wanted).norm() <= EXACT * wanted.norm()


def test_what_was_not_kept_cannot_be_taken_out_and_is_the_base_of_what_comes_next(live, small):
    pipe, path = copy.deepcopy(live), small.path
    lasting = lt.apply(pipe, path, 0.5, how="weights", keep="none", arch="sd1")
    assert "cannot be put back" in lasting.warnings[-1]
    after = bits(pipe)
    for refused in (lasting.remove, lambda: lasting.set_scale(0)):
        with pytest.raises(NotRepresentable, match="were not kept"):
            refused()
    lt.apply(pipe, path, 0.3, how="weights", arch="sd1").remove()
    assert same_bits(pipe, after)
    kept = lt.apply(pipe, path, 0.3, how="weights", arch="sd1")
    lt.apply(pipe, path, 0.2, how="weights", keep="none", arch="sd1")
    kept.remove()
    judged(pipe, bits(live), small, 0.5 + 0.2)  # the first that stayed, and the one that was added beside another


def test_a_single_model_is_taken_for_what_it_is(live, sd1, small):
    truth = small
    with pytest.raises(PartialMatch, match="text_encoder"):
        lt.apply(live.unet, truth.path, arch="sd1")
    for component in ("unet", "text_encoder"):
        with lt.apply(getattr(live, component), truth.path, components=[component], arch="sd1", how="weights"):
            assert changes(live, sd1[1]).keys() == {where for where in truth.deltas if where[0] == component}
    with lt.apply({"unet": live.unet}, truth.path, arch="sd1", allow_partial=True) as applied:
        assert {row.component for row in applied.modules} == {"unet"}
        assert applied.unmatched


def test_a_file_that_fails_half_way_leaves_nothing_behind(live, small, tmp_path):
    tensors = load_file(small.path)
    last = [key for key in tensors if key.endswith("lora_up.weight")][-1]
    tensors[last] = torch.full_like(tensors[last], float("nan"))
    save_file(tensors, tmp_path / "broken.safetensors")
    for how in ("peft", "weights"):
        with pytest.raises(NonFinite) as caught:
            lt.apply(live, tmp_path / "broken.safetensors", how=how, arch="sd1")
        assert caught.value.key == last.removesuffix(".lora_up.weight")


def test_what_somebody_else_changed_is_not_overwritten_unless_forced(live, small):
    path = small.path
    applied = lt.apply(live, path, how="weights", arch="sd1")
    with torch.no_grad():
        live.unet.conv_in.weight.add_(1)
    after = bits(live)
    for refused in (applied.remove, lambda: applied.set_scale(0.5)):
        with pytest.raises(NotRepresentable, match="conv_in"):
            refused()
    assert same_bits(live, after)
    applied.remove(force=True)


def test_a_cast_of_the_pipeline_is_followed(live, small):
    pipe, path = copy.deepcopy(live), small.path
    applied = lt.apply(pipe, path, 0.3, how="weights", arch="sd1")
    pipe.to(torch.float16)
    half = copy.deepcopy(live).to(torch.float16)
    other = lt.apply(half, path, SCALE, how="weights", arch="sd1")
    applied.set_scale(SCALE)
    assert same_bits(pipe, bits(half))
    applied.remove()
    other.remove()
    assert same_bits(pipe, bits(half))


def test_random_numbers_and_trainable_parameters_stay_as_they_are(live, small):
    live.unet.conv_in.requires_grad_(False)
    before = [parameter.requires_grad for parameter in live.unet.parameters()]
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    with lt.apply(live, small.path, arch="sd1"):
        assert torch.equal(torch.rand(3), wanted)
        assert not any(value.requires_grad for key, value in live.unet.named_parameters() if "lora_" in key)
    assert [parameter.requires_grad for parameter in live.unet.parameters()] == before


def test_an_embedding_beside_the_adapter_is_reported(live, small, tmp_path):
    tensors = load_file(small.path)
    save_file(tensors | {"bundle_emb.cat.string_to_param.*": torch.zeros(2, 768)}, tmp_path / "bundle.safetensors")
    with lt.apply(live, tmp_path / "bundle.safetensors", arch="sd1") as applied:
        assert "bundle_emb.cat" in applied.left_out[0]
        assert applied.to_dict()["left_out"] == list(applied.left_out)


def test_the_document_says_what_went_where(live, small):
    with lt.apply(live, small.path, {"unet": 0.5}, arch="sd1", name="style") as applied:
        told = applied.to_dict()
        assert told["schema"] == "loratools.apply/1"
        assert told["scales"] == {"unet": 0.5, "text_encoder": 1.0}
        assert told["adapter_names"] == ["style"]
        assert sum(row["modules"] for row in told["counts"]) == len(told["modules"])
        assert live.get_list_adapters()["unet"] == ["style"]
        with pytest.raises(UsageError, match="already"):
            lt.apply(live, small.path, arch="sd1", name="style")


def test_canonical_paths_lead_to_live_modules(live):
    encoder = components(live)["text_encoder"]
    for path, module in encoder.named_modules():
        if "weight" in module._parameters:
            canonical = f"text_model.{path.removeprefix('text_model.')}"
            assert weight_of(encoder, canonical) is module.weight
    with pytest.raises(UsageError, match="no module"):
        weight_of(encoder, "text_model.nothing")
    with pytest.raises(UsageError, match="no live pipeline"):
        components("pipeline")
