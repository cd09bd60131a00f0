"""convert as a library: sources, plans, arithmetic, what is recorded, what is refused."""

import io
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.errors import (
    ArchitectureMismatch,
    NonFinite,
    NotRepresentable,
    OutputExists,
    OutputRefused,
    UsageError,
    WrongRole,
)
from tests.files import save
from tests.operations.making import KEY, METADATA, MODULES, QUERY, file, same, tensors


def metadata_of(path):
    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


# Sources and results


@pytest.mark.parametrize("sort", ["path", "text", "bytes", "stream", "mapping", "opened"])
def test_every_sort_of_source_gives_the_same_tensors(tmp_path, sort):
    path = file(tmp_path / "in.safetensors")
    source = {
        "path": lambda: path,
        "text": lambda: str(path),
        "bytes": path.read_bytes,
        "stream": lambda: io.BytesIO(path.read_bytes()),
        "mapping": lambda: load_file(path),
        "opened": lambda: lt.open(path),
    }[sort]()
    pending = lt.convert(source, to="diffusers")
    result = pending.save(tmp_path / "out.safetensors")
    assert result.proof.identical == len(MODULES)
    held, written = load_file(path), load_file(tmp_path / "out.safetensors")
    factors = sorted(tensor.numpy().tobytes() for key, tensor in held.items() if not key.endswith(".alpha"))
    assert sorted(tensor.numpy().tobytes() for tensor in written.values()) == factors


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
@pytest.mark.parametrize("how", [{}, {"dtype": "BF16"}, {"alpha": "fold"}], ids=str)
def test_state_dict_is_what_is_saved(sd1, tmp_path, to, how):
    pending = lt.convert(sd1, to=to, **how)
    held = pending.state_dict()
    out = pending.save(tmp_path / ("out" if to == "peft" else "out.safetensors")).path
    if to == "peft":
        names = ("unet", "text_encoder")
        written = {
            f"{name}/{key}": tensor
            for name in names
            for key, tensor in load_file(out / name / "adapter_model.safetensors").items()
        }
    else:
        written = load_file(out)
    assert same(held, written)


def test_a_plan_says_what_the_file_will_be(sd1, tmp_path):
    pending = lt.convert(sd1, to="diffusers", components=["unet"])
    plan = pending.plan
    out = pending.save(tmp_path / "out.safetensors").path
    written = load_file(out)
    ((_, count, size),) = plan.files
    assert (count, size) == (len(written), sum(tensor.nbytes for tensor in written.values()))
    assert (plan.source_format, plan.format, plan.architecture, plan.adapters) == ("kohya", "diffusers", "sd1", 6)
    assert plan.lost == ("text_encoder: not among --components",)
    assert plan.to_dict()["schema"] == "loratools.plan/1"


def test_a_result_is_the_document_of_the_command_line(inside, sd1, tmp_path):
    done = inside("convert", "--json", sd1, tmp_path / "cli.safetensors", "--to", "diffusers", "--dtype", "bf16")
    ours = lt.convert(sd1, to="diffusers", dtype="BF16").save(tmp_path / "api.safetensors").to_dict()
    theirs = json.loads(done.stdout)
    assert (theirs.pop("path"), ours.pop("path")) == (
        str(tmp_path / "cli.safetensors"),
        str(tmp_path / "api.safetensors"),
    )
    assert theirs == ours
    assert (tmp_path / "cli.safetensors").read_bytes() == (tmp_path / "api.safetensors").read_bytes()


def test_components_are_taken_alone(sd1, tmp_path):
    out = lt.convert(sd1, to="diffusers", components=["text_encoder"]).save(tmp_path / "te.safetensors").path
    assert {key.split(".")[0] for key in load_file(out)} == {"text_encoder"}
    with pytest.raises(UsageError, match="unett") as caught:
        lt.convert(sd1, to="diffusers", components=["unett"])
    assert "unet" in caught.value.hint


# Arithmetic


@pytest.mark.parametrize(("name", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cast_rounds_as_torch_does(tmp_path, name, dtype, source):
    path = file(tmp_path / "in.safetensors", dtype=source)
    result = lt.convert(path, to="kohya", dtype=name).save(tmp_path / "out.safetensors")
    held, written = load_file(path), load_file(result.path)
    assert held.keys() == written.keys()
    factors = [key for key in held if not key.endswith(".alpha")]
    assert same({key: held[key].to(dtype) for key in factors}, {key: written[key] for key in factors})
    if dtype == source:
        assert result.proof.identical == len(MODULES)
    elif dtype == torch.float32:
        assert (result.proof.exact, result.proof.worst) == (len(MODULES), 0)
    else:
        # Nearly every bfloat16 is a float16 as well: its bits are fewer, and only its smallest numbers are rounded.
        assert 0 <= result.proof.worst < 2 * torch.finfo(dtype).eps
        assert result.proof.worst > 0 or (source, dtype) == (torch.bfloat16, torch.float16)


def test_folding_a_power_of_two_is_exact_and_says_so(sd1, tmp_path):
    result = lt.convert(sd1, to="diffusers", alpha="fold").save(tmp_path / "out.safetensors")
    assert (result.proof.exact, result.proof.worst) == (6, 0)
    assert set(lt.inspect(result.path).to_dict()["alpha"]["scales"]) == {"1.0"}


def test_folding_anything_else_is_measured_and_small(tmp_path):
    path = file(tmp_path / "in.safetensors", alpha=3.3)
    result = lt.convert(path, to="diffusers", alpha="fold").save(tmp_path / "out.safetensors")
    assert result.proof.measured == len(MODULES)
    assert 0 < result.proof.worst <= 1e-6
    assert lt.compare(path, result.path).worst == result.proof.worst


def test_a_fold_that_float16_cannot_hold_goes_to_float32(tmp_path):
    held = tensors(alpha=1.0)
    for stem in MODULES:  # nothing small anywhere, so that a quarter of it is a float16
        for role in ("lora_up", "lora_down"):
            held[f"{stem}.{role}.weight"][held[f"{stem}.{role}.weight"].abs() < 0.01] = 0.5
    for role in ("lora_up", "lora_down"):  # the smallest subnormal, a quarter of which is none
        held[f"{QUERY}.{role}.weight"].view(-1)[0] = 2.0**-24
    result = lt.convert(save(held, tmp_path / "in.safetensors", METADATA), to="diffusers", alpha="fold").save(
        tmp_path / "out.safetensors"
    )
    assert (result.proof.exact, result.proof.worst) == (len(MODULES), 0)
    wide = [key for key, tensor in load_file(result.path).items() if tensor.dtype == torch.float32]
    assert len(wide) == 1
    assert "attn1.to_q" in wide[0]


@pytest.mark.parametrize("dtype", ["float32", "half", "I8", "F4", ""])
def test_factors_are_floats_by_the_names_of_safetensors(dtype, tmp_path):
    path = save(tensors(), tmp_path / "in.safetensors", METADATA)
    with pytest.raises(UsageError) as refused:
        lt.convert(path, to="diffusers", dtype=dtype)
    assert refused.value.hint == "F16, BF16 or F32"


@pytest.mark.parametrize("existing", [False, True])
def test_an_overflow_is_refused_and_leaves_everything_as_it_was(tmp_path, existing):
    held = tensors(dtype=torch.float32)
    held[f"{KEY}.lora_up.weight"].view(-1)[7] = 7e4
    path, out = save(held, tmp_path / "in.safetensors", METADATA), tmp_path / "out.safetensors"
    if existing:
        out.write_bytes(b"old")
    with pytest.raises(NonFinite) as caught:
        lt.convert(path, to="diffusers", dtype="F16").save(out, overwrite=True)
    assert caught.value.exit_code == 7
    assert caught.value.key == f"{KEY}.lora_up.weight"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in.safetensors", *(["out.safetensors"] * existing)]
    assert not existing or out.read_bytes() == b"old"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("how", [{"dtype": "BF16"}, {"alpha": "fold"}], ids=str)
def test_nonfinite_values_are_copied_by_a_rename_and_refused_by_arithmetic_unless_allowed(tmp_path, value, how):
    held = tensors()
    for role in ("lora_up", "lora_down"):
        held[f"{QUERY}.{role}.weight"].view(-1)[3] = value
    path = save(held, tmp_path / "in.safetensors", METADATA)
    renamed = lt.convert(path, to="diffusers").save(tmp_path / "renamed.safetensors")
    assert renamed.proof.identical == len(MODULES)
    with pytest.raises(NonFinite) as caught:
        lt.convert(path, to="diffusers", **how).save(tmp_path / "refused.safetensors")
    assert caught.value.key.startswith(QUERY)
    assert "--allow-nonfinite" in caught.value.hint
    assert not (tmp_path / "refused.safetensors").exists()
    allowed = lt.convert(path, to="kohya", allow_nonfinite=True, **how).save(tmp_path / "allowed.safetensors")
    proof = allowed.proof
    assert proof.identical + proof.exact + proof.measured == len(MODULES) - 1
    assert len(allowed.warnings) == 1
    assert "attn1.to_q" in allowed.warnings[0]
    up = load_file(allowed.path)[f"{QUERY}.lora_up.weight"].view(-1)[3]
    assert torch.equal(up.float().isnan(), torch.tensor(value).isnan())


# What is recorded


def test_provenance_names_the_input_and_its_hash_and_nothing_of_the_machine(tmp_path):
    import hashlib
    import socket

    folder = tmp_path / "a folder"
    folder.mkdir()
    path = file(folder / "in.safetensors")
    first = lt.convert(path, to="diffusers", dtype="BF16").save(tmp_path / "one.safetensors").path
    second = lt.convert(path, to="diffusers", dtype="BF16").save(folder / "two.safetensors").path
    record = metadata_of(first)["loratools.provenance"]
    assert json.loads(record) == {
        "inputs": [{"name": "in.safetensors", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}],
        "operation": "convert",
        "parameters": {"to": "diffusers", "dtype": "BF16"},
        "version": lt.__version__,
    }
    assert first.read_bytes() == second.read_bytes()  # no time, no path
    for word in (str(tmp_path), "a folder", socket.gethostname()):
        assert word.encode() not in first.read_bytes()


def sd_scripts_hashes(held, metadata):
    """sd-scripts' formulas: of the file with `ss_` metadata alone, the payload, and 64 KiB from 1 MiB on."""
    import hashlib

    from safetensors.torch import save as serialise

    raw = serialise(held, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    payload = raw[8 + int.from_bytes(raw[:8], "little") :]
    return hashlib.sha256(payload).hexdigest(), hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("how", [{}, {"dtype": "BF16"}, {"dtype": "F32"}], ids=str)
@pytest.mark.parametrize("rank", [4, 64], ids=["short of 1 MiB", "beyond 1 MiB"])
def test_hashes_of_sd_scripts_are_those_of_the_output(tmp_path, how, rank):
    stale = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x" + "0" * 64}
    path = file(tmp_path / "in.safetensors", {**METADATA, **stale}, rank=rank)
    out = lt.convert(path, to="kohya", **how).save(tmp_path / "out.safetensors").path
    found = metadata_of(out)
    model, legacy = sd_scripts_hashes(load_file(out), found)
    assert found["sshs_model_hash"] == model
    assert found["sshs_legacy_hash"] == legacy
    assert found["modelspec.hash_sha256"] == f"0x{model}"


def test_metadata_are_kept_and_hashes_not_invented(tmp_path):
    path = file(tmp_path / "in.safetensors")
    found = metadata_of(lt.convert(path, to="diffusers").save(tmp_path / "out.safetensors").path)
    assert {key: found[key] for key in METADATA} == METADATA
    assert not any("hash" in key or "sshs" in key for key in found)


def test_if_needed_skips_what_is_made_and_redoes_what_changed(tmp_path, monkeypatch):
    path, out = file(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"

    def again(**how):
        return lt.convert(path, to="diffusers", **how).save(out, if_needed=True, overwrite=True).skipped

    assert again() is False
    made = out.stat().st_mtime_ns
    assert again() is True
    assert out.stat().st_mtime_ns == made
    assert again(dtype="BF16") is False  # other parameters
    assert again(dtype="BF16") is True
    file(path, seed=1)  # another input under the same name
    assert again(dtype="BF16") is False
    monkeypatch.setattr(lt, "__version__", "999.0")
    assert again(dtype="BF16") is False
    assert again(dtype="BF16") is True
    out.write_bytes(out.read_bytes()[:-1])  # torn: made by nobody
    assert again(dtype="BF16") is False
    load_file(out)


def test_if_needed_does_not_replace_what_something_else_made(tmp_path):
    path = file(tmp_path / "in.safetensors")
    other = file(tmp_path / "out.safetensors", seed=5)
    before = other.read_bytes()
    with pytest.raises(OutputExists):
        lt.convert(path, to="diffusers").save(other, if_needed=True)
    assert other.read_bytes() == before


# Refusals, also of a preview


def test_a_preview_tells_the_free_disk_and_writes_nothing(sd1, tmp_path):
    plan = lt.convert(sd1, to="diffusers").preview(tmp_path / "out.safetensors")
    assert plan.free_disk > 0
    assert plan.to_dict()["path"] == str(tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("act", ["preview", "save"])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("there.safetensors", OutputExists),
        ("in.safetensors", OutputRefused),
        ("link.safetensors", OutputRefused),
        ("no/folder.safetensors", UsageError),
        ("folder", UsageError),
        ("weights.ckpt", UsageError),
        ("noending", UsageError),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_and_by_the_work(tmp_path, act, name, error):
    path = file(tmp_path / "in.safetensors")
    (tmp_path / "there.safetensors").write_bytes(b"old")
    (tmp_path / "link.safetensors").symlink_to(path)
    (tmp_path / "folder").mkdir()
    before = sorted(item.name for item in tmp_path.iterdir())
    pending = lt.convert(path, to="diffusers")
    with pytest.raises(error) as caught:
        getattr(pending, act)(tmp_path / name)
    assert caught.value.exit_code == 2
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("act", ["preview", "save"])
def test_an_output_inside_the_input_folder_is_refused(peft_folder, act):
    with pytest.raises(OutputRefused, match="in the input"):
        getattr(lt.convert(peft_folder, to="kohya", arch="sd1"), act)(peft_folder / "out.safetensors")


@pytest.mark.parametrize("act", ["preview", "save"])
def test_a_bare_peft_file_holds_one_component_at_scale_one(sd1, tmp_path, act):
    out = tmp_path / "bare.safetensors"
    with pytest.raises(UsageError, match="folder"):
        getattr(lt.convert(sd1, to="peft"), act)(out)
    with pytest.raises(NotRepresentable, match="alpha"):
        getattr(lt.convert(sd1, to="peft", components=["unet"]), act)(out)
    getattr(lt.convert(sd1, to="peft", components=["unet"], alpha="fold"), act)(out)
    assert out.exists() is (act == "save")


@pytest.mark.parametrize("arch", ["flux1", "sdxl", "sd2", "llm"])
@pytest.mark.parametrize("verb", [lambda path, arch: lt.convert(path, to="kohya", arch=arch), lt.inspect])
def test_an_architecture_that_the_file_contradicts_is_refused(sd1, arch, verb):
    with pytest.raises(ArchitectureMismatch) as caught:
        verb(sd1, arch=arch)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("held", "what"),
    [
        ({"string_to_param": torch.zeros(2, 768), "emb_params": torch.zeros(2, 768)}, "an embedding"),
        (
            {"encoder.conv_in.weight": torch.zeros(128, 3, 3, 3), "decoder.conv_in.weight": torch.zeros(512, 4, 3, 3)},
            "a VAE",
        ),
        ({"foo": torch.zeros(3)}, "no adapter weights"),
    ],
)
def test_what_is_no_adapter_is_called_what_it_is(tmp_path, held, what):
    with pytest.raises(WrongRole, match=what):
        lt.convert(save(held, tmp_path / "in.safetensors"), to="kohya")


def test_what_was_saved_whole_goes_with_its_component_and_stays_behind_with_it(tmp_path):
    stem = "base_model.model."
    layers = {
        "unet": ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "conv_norm_out.weight"),
        "text_encoder": ("encoder.layers.0.self_attn.q_proj", "final_layer_norm.weight"),
    }
    for component, (layer, whole) in layers.items():
        folder = tmp_path / "in" / component
        folder.mkdir(parents=True)
        held = {
            f"{stem}{layer}.lora_A.weight": torch.randn(2, 1280 if component == "unet" else 768),
            f"{stem}{layer}.lora_B.weight": torch.randn(1280 if component == "unet" else 768, 2),
            f"{stem}{whole}": torch.randn(4),
        }
        save_file(held, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [layer]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    both = lt.convert(tmp_path / "in", to="peft", arch="sd1").save(tmp_path / "both").path
    one = lt.convert(tmp_path / "in", to="peft", arch="sd1", components=["unet"]).save(tmp_path / "one").path
    for component, (_, whole) in layers.items():
        assert f"{stem}{whole}" in load_file(both / component / "adapter_model.safetensors")
    held = load_file(one / "adapter_model.safetensors")
    assert f"{stem}{layers['unet'][1]}" in held
    assert f"{stem}{layers['text_encoder'][1]}" not in held
