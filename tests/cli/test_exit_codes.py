"""Every documented exit code, reached from the command line."""

import json
import resource
import shutil
import signal
import struct
import subprocess
import sys

import pytest

from loratools import errors
from loratools.cli.failures import EXIT_CODES, Interrupted, Terminated


def subclasses(of):
    for child in of.__subclasses__():
        yield child
        yield from subclasses(child)


def refused(done, code, word=None):
    """The failure that a finished process ended in, read from its error document."""
    assert done.returncode == code, (done.stdout, done.stderr)
    document = json.loads(done.stdout)
    assert document["schema"] == "loratools.error/1"
    assert document["exit_code"] == code
    assert word is None or document["code"] == word
    assert document["message"]
    return document


def test_documented_codes_are_those_that_errors_end_with():
    documented = {code for code, _ in EXIT_CODES} | {143}
    raised = {error.exit_code for error in subclasses(errors.LoratoolsError)}
    assert raised | {0, 1} == documented


def test_0_when_a_file_was_read(run, sd1):
    assert run("inspect", sd1).returncode == 0


def test_1_when_adapters_differ(inside, adapters, sd1):
    done = inside("compare", "--json", sd1, adapters / "peft")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["equal"] is False


def test_0_when_an_adapter_is_compared_with_itself(inside, sd1):
    done = inside("compare", "--json", sd1, sd1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["worst"] == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["inspekt", "x"], "inspect"),
        (["inspect", "--modulez", "x"], "--modules"),
        (["inspect"], "--help"),
        (["compare", "--tolerance", "much", "a", "b"], "--help"),
        ([], "--help"),
        (["convert", "x", "y"], "diffusers"),
        (["convert", "x", "--to", "kohya"], "--help"),
        (["convert", "x", "y", "--to", "kohya", "--dtype", "flaot16"], "float16"),
        (["convert", "x", "y", "--to", "kohya", "--components", ""], "unet"),
        (["convert", "", "y", "--to", "kohya"], "--help"),
    ],
)
def test_2_for_usage_with_a_hint(inside, arguments, hint):
    assert hint in refused(inside("--json", *arguments), 2, "usage")["hint"]


def test_2_for_an_unknown_format_names_the_nearest(inside, sd1, tmp_path):
    document = refused(inside("convert", "--json", sd1, tmp_path / "o.safetensors", "--to", "difusers"), 2, "usage")
    assert "diffusers" in document["hint"]


def test_2_for_an_unknown_architecture_names_the_nearest(inside, sd1):
    assert "sdxl" in refused(inside("inspect", "--json", sd1, "--arch", "sdxxl"), 2, "usage")["hint"]


def test_2_for_a_missing_path(run, tmp_path):
    document = refused(run("inspect", "--json", tmp_path / "nothing.safetensors"), 2, "path-not-found")
    assert document["path"] == str(tmp_path / "nothing.safetensors")


def test_2_when_the_output_exists_and_0_with_overwrite(inside, sd1, tmp_path):
    out = tmp_path / "o.safetensors"
    out.write_text("old")
    refused(inside("convert", "--json", sd1, out, "--to", "diffusers"), 2, "output-exists")
    assert out.read_text() == "old"
    assert inside("convert", sd1, out, "--to", "diffusers", "--overwrite").returncode == 0
    assert out.read_bytes()[:4] != b"old"


@pytest.mark.parametrize("way", ["same", "link", "hardlink"])
def test_2_when_the_output_is_the_input(inside, sd1, tmp_path, way):
    source = tmp_path / "in.safetensors"
    shutil.copyfile(sd1, source)
    before = source.read_bytes()
    out = source if way == "same" else tmp_path / "out.safetensors"
    if way == "link":
        out.symlink_to(source)
    elif way == "hardlink":
        out.hardlink_to(source)
    refused(inside("convert", "--json", source, out, "--to", "diffusers", "--overwrite"), 2, "output-refused")
    assert source.read_bytes() == before


def test_3_for_a_truncated_file(run, sd1, tmp_path):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(sd1.read_bytes()[:-10])
    assert refused(run("inspect", "--json", torn), 3, "malformed-file")["path"] == str(torn)


def test_3_for_an_unknown_key_unless_partial_is_allowed(inside, tmp_path):
    import torch

    from tests.files import SD1_KOHYA, kohya_tensors, save

    path = save({**kohya_tensors(SD1_KOHYA), "mystery.weight": torch.ones(3)}, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    document = refused(inside("convert", "--json", path, out, "--to", "diffusers"), 3, "unknown-key")
    assert "mystery.weight" in json.dumps(document)
    assert not out.exists()
    done = inside("convert", "--json", path, out, "--to", "diffusers", "--allow-partial")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "mystery.weight" in done.stdout
    assert inside("inspect", path).returncode == 0
    strict = inside("inspect", "--json", "--strict", path)
    assert strict.returncode == 3
    assert "mystery.weight" in json.loads(strict.stdout)["unknown_keys"][0]["key"]


def test_4_when_the_named_architecture_does_not_fit(run, peft_folder, tmp_path):
    out = tmp_path / "o.safetensors"
    refused(
        run("convert", "--json", peft_folder, out, "--to", "diffusers", "--arch", "flux1"), 4, "architecture-mismatch"
    )
    assert not out.exists()


@pytest.mark.parametrize("arch", ["flux1", "sdxl", "sd2"])
def test_4_when_only_a_part_or_none_of_it_is_of_the_named_architecture(inside, sd1, tmp_path, arch):
    out = tmp_path / "o.safetensors"
    done = inside("convert", "--json", sd1, out, "--to", "diffusers", "--arch", arch)
    assert "sd1" in refused(done, 4, "architecture-mismatch")["message"]
    assert not out.exists()


def test_7_for_nan_in_what_is_computed_and_0_where_it_is_allowed_or_copied(inside, tmp_path):

    from tests.files import SD1_KOHYA, kohya_tensors, save

    tensors = kohya_tensors(SD1_KOHYA)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key].view(-1)[5] = float("nan")
    path, out = save(tensors, tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    cast = ["convert", "--json", path, out, "--to", "diffusers", "--dtype", "bf16"]
    document = refused(inside(*cast), 7, "non-finite")
    assert document["key"] == key
    assert "--allow-nonfinite" in document["hint"]
    assert not out.exists()
    allowed = inside(*cast, "--allow-nonfinite")
    assert allowed.returncode == 0
    assert "NaN" in json.loads(allowed.stdout)["warnings"][0]
    assert inside("convert", path, out, "--to", "diffusers", "--overwrite").returncode == 0


def test_4_for_a_base_where_an_adapter_is_needed(inside, tmp_path):
    import torch

    from tests.files import save

    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "model.diffusion_model.input_blocks.0.0.bias": torch.zeros(320),
        "model.diffusion_model.out.2.weight": torch.zeros(4, 320, 3, 3),
        "model.diffusion_model.out.2.bias": torch.zeros(4),
    }
    base = save(tensors, tmp_path / "base.safetensors")
    refused(inside("convert", "--json", base, tmp_path / "o.safetensors", "--to", "diffusers"), 4, "wrong-role")


def test_5_when_the_disk_takes_no_more_and_nothing_is_left(run, sd1, tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "o.safetensors"
    done = run("convert", "--json", sd1, out, "--to", "diffusers", preexec_fn=little_room)
    refused(done, 5, "resource")
    assert list(tmp_path.iterdir()) == []


def test_7_when_a_cast_overflows_and_nothing_is_left(inside, tmp_path):
    import torch

    from tests.files import SD1_KOHYA, kohya_tensors, save

    tensors = {key: tensor.float() for key, tensor in kohya_tensors(SD1_KOHYA).items()}
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key].view(-1)[5] = torch.tensor(1e6)
    path = save(tensors, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    document = refused(
        inside("convert", "--json", path, out, "--to", "diffusers", "--dtype", "float16"), 7, "non-finite"
    )
    assert document["key"]
    assert not out.exists()


# A process whose inspect fails, or waits for a signal, in the middle of its work.
STORY = """
import sys, time
from pathlib import Path
import loratools.operations.inspect as operation
from loratools.cli.main import main

def inspect(ref, **how):
    if ref == "divide":
        return 1 / 0
    try:
        print("working", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        Path(ref).write_text("cleaned up")

operation.inspect = inspect
main(["inspect", *sys.argv[1:]])
"""


def test_70_for_our_own_bug_asks_for_a_report_and_shows_a_traceback_only_with_debug():
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-c", STORY, "divide", *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    plain = call()
    assert plain.returncode == 70
    assert "report" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert plain.stdout == ""
    assert "Traceback" in call("--debug").stderr
    assert refused(call("--json"), 70, "internal")["hint"]


@pytest.mark.parametrize(("sent", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_signal_unwinds_the_work_and_ends_with_its_code(tmp_path, sent, error, form):
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", STORY, str(mark), *(["--json"] if form == "json" else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "working\n"
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == error.exit_code
    assert mark.read_text() == "cleaned up"
    assert "Traceback" not in err
    if form == "json":
        assert json.loads(out)["code"] == error.code
    else:
        assert err.startswith("error: ")


def test_a_header_that_claims_more_than_the_file_holds_is_3(inside, tmp_path):
    path = tmp_path / "liar.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    refused(inside("inspect", "--json", path), 3, "malformed-file")
