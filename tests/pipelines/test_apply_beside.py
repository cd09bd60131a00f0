"""Applied beside what PEFT and diffusers have put into a pipeline, and where weights cannot be changed at all."""

import copy

import pytest
import torch

import loratools as lt
from loratools.errors import NotRepresentable
from tests.judges import by_kohya, by_lycoris, by_peft
from tests.judges.fresh import fresh
from tests.judges.live import answers, bits, distance, equal, same_bits

COMPONENTS = {"unet": None, "text_encoder": None}
SCALE = 0.7
CLOSE = 1e-5


@pytest.fixture(scope="module")
def ours(pipeline, tmp_path_factory):
    """A kohya file over a few modules."""
    out = tmp_path_factory.mktemp("ours") / "ours.safetensors"
    return by_kohya.make(pipeline("sd1"), out, architecture="sd1", components=COMPONENTS, most=12).path


@pytest.fixture(scope="module")
def theirs(pipeline, tmp_path_factory):
    """A file for load_lora_weights over more modules, those of ours among them."""
    out = tmp_path_factory.mktemp("theirs") / "theirs.safetensors"
    return by_peft.make(pipeline("sd1"), out, architecture="sd1", components=COMPONENTS, most=24, seed=1).path


@pytest.fixture(scope="module")
def plain(pipeline):
    return fresh(pipeline("sd1"))


@pytest.fixture
def pipe(plain):
    """A live pipeline of its own for every test."""
    return copy.deepcopy(plain)


@pytest.fixture(scope="module")
def both(plain, ours, theirs):
    """The answers with both adapters, each added to the weights."""
    pipe = copy.deepcopy(plain)
    lt.apply(pipe, theirs, 0.5, how="weights")
    lt.apply(pipe, ours, SCALE, how="weights", arch="sd1")
    return answers(pipe)


@pytest.mark.parametrize("how", ["peft", "weights"])
def test_beside_an_adapter_of_diffusers_both_are_felt(how, pipe, ours, theirs, both):
    pipe.load_lora_weights(theirs, adapter_name="theirs")
    pipe.set_adapters(["theirs"], [0.5])
    before, answer = bits(pipe), answers(pipe)
    applied = lt.apply(pipe, ours, SCALE, how=how, arch="sd1")
    assert distance(answers(pipe), both) < CLOSE
    assert pipe.get_active_adapters()[0] == "theirs"
    applied.set_scale(0)
    assert equal(answers(pipe), answer)
    applied.remove()
    assert pipe.get_active_adapters() == ["theirs"]
    assert same_bits(pipe, before)
    assert equal(answers(pipe), answer)


def test_adapters_of_diffusers_that_come_and_go_leave_ours_and_ours_leaves_them(pipe, ours, theirs, both):
    before = bits(pipe)
    applied = lt.apply(pipe, ours, SCALE, arch="sd1", name="ours")
    pipe.load_lora_weights(theirs, adapter_name="theirs")
    pipe.set_adapters(["ours", "theirs"], [SCALE, 0.5])
    assert distance(answers(pipe), both) < CLOSE
    pipe.delete_adapters("theirs")
    applied.remove()
    pipe.unload_lora_weights()  # diffusers leaves empty layers where it deletes
    assert same_bits(pipe, before)
    gone = lt.apply(pipe, ours, SCALE, arch="sd1", name="ours")
    pipe.unload_lora_weights()
    with pytest.raises(NotRepresentable, match="by something else"):
        gone.set_scale(1)
    gone.remove()
    assert same_bits(pipe, before)


def test_fused_adapters_stay_fused_and_are_added_to(pipe, ours, theirs, both):
    pipe.load_lora_weights(theirs, adapter_name="theirs")
    pipe.set_adapters(["theirs"], [0.5])
    pipe.fuse_lora(components=["unet", "text_encoder"])
    before = bits(pipe)
    with pytest.raises(NotRepresentable, match="merged"):
        lt.apply(pipe, ours, SCALE, how="peft", arch="sd1")
    with lt.apply(pipe, ours, SCALE, arch="sd1") as applied:
        assert {row.way for row in applied.modules} == {"weights"}
        assert distance(answers(pipe), both) < CLOSE
    assert same_bits(pipe, before)


def test_a_dora_runs_first_and_no_weight_is_changed_under_it(pipe, ours, pipeline, tmp_path):
    dora = by_peft.make(
        pipeline("sd1"), tmp_path / "dora", architecture="sd1", container="peft", components={"unet": None}, most=24,
        use_dora=True,
    ).path  # fmt: skip
    with lt.apply(pipe, dora, how="weights"), lt.apply(pipe, ours, SCALE, how="weights", arch="sd1"):
        wanted = answers(pipe)
    before = bits(pipe)
    first = lt.apply(pipe, ours, SCALE, arch="sd1")
    second = lt.apply(pipe, dora, how="peft")
    assert distance(answers(pipe), wanted) < CLOSE
    with pytest.raises(NotRepresentable, match="another change"):
        second.set_scale(0.5)
    with pytest.raises(NotRepresentable, match="depends on the weight"):
        lt.apply(pipe, ours, how="weights", arch="sd1")
    second.set_scale(0)
    second.set_scale(1)
    assert distance(answers(pipe), wanted) < CLOSE
    second.remove()
    first.remove()
    assert same_bits(pipe, before)


class Packed(torch.nn.Parameter):
    """As quantising libraries do: a class of their own, with numbers that stand for others."""


@pytest.fixture
def quantised(pipe):
    """A pipeline with one linear layer whose weight is packed."""
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    layer.weight = Packed(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    return pipe


def test_quantised_layers_get_layers_of_pefts_or_are_refused_by_name(quantised, pipeline, tmp_path):
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    chosen = {"unet": lambda name: name in (path, path.replace("to_q", "to_k"))}
    lora = by_kohya.make(
        pipeline("sd1"), tmp_path / "lora.safetensors", architecture="sd1", components=chosen, scales=[(4, 2)]
    ).path
    before = bits(quantised)
    with lt.apply(quantised, lora, arch="sd1") as applied:
        assert {row.path: row.way for row in applied.modules}[path] == "peft"
    with pytest.raises(NotRepresentable, match=r"quantised.*Packed, uint8") as caught:
        lt.apply(quantised, lora, arch="sd1", how="weights")
    assert caught.value.key == f"unet:{path}"
    with lt.apply(quantised, lora, arch="sd1", how="weights", allow_partial=True) as applied:
        assert [row.path for row in applied.modules] == [path.replace("to_q", "to_k")]
        assert applied.left_out[0].startswith(f"unet:{path}: ")
    assert same_bits(quantised, before)


def test_a_loha_of_low_rank_becomes_a_layer_of_pefts_where_the_weight_is_out_of_reach(pipe, pipeline, tmp_path):
    truth = by_lycoris.make(pipeline("sd1"), tmp_path / "loha.safetensors", "loha")
    with lt.apply(pipe, truth.path, arch="sd1", how="weights"):
        wanted = answers(pipe)
    with pytest.raises(NotRepresentable, match="low rank"):
        lt.apply(pipe, truth.path, arch="sd1", how="peft")
    with lt.apply(pipe, truth.path, arch="sd1", how="peft", allow_partial=True) as applied:
        assert {row.kind for row in applied.modules} == {"loha"}
        assert len(applied.modules) + len(applied.left_out) == len(truth.deltas)
        others = [f"{row.component}.{row.path}=0" for row in applied.modules]
        with lt.apply(pipe, truth.path, arch="sd1", how="weights", weights=others):
            assert distance(answers(pipe), wanted) < CLOSE


def test_offloaded_weights_are_refused_with_what_to_do(pipe, ours):
    from accelerate import cpu_offload

    cpu_offload(pipe.text_encoder, execution_device=torch.device("cpu"))
    with pytest.raises(NotRepresentable, match=r"not in memory.*remove_all_hooks"):
        lt.apply(pipe, ours, arch="sd1")
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with pytest.raises(NotRepresentable, match="in groups"):
        lt.apply(pipe, ours, arch="sd1")


def test_fused_projections_are_refused(pipe, ours, pipeline, tmp_path):
    lora = by_kohya.make(
        pipeline("sd1"),
        tmp_path / "attention.safetensors",
        architecture="sd1",
        components={"unet": lambda name: name.endswith("attn1.to_k")},
    ).path
    pipe.fuse_qkv_projections()
    with pytest.raises(NotRepresentable, match="unfuse_qkv_projections"):
        lt.apply(pipe, lora, arch="sd1")
    pipe.unfuse_qkv_projections()
    lt.apply(pipe, lora, arch="sd1").remove()
