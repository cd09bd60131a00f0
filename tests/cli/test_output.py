"""What reaches stdout and stderr: JSON, text, pipes, hostile names."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from loratools.cli.main import VERBS, cli

EVIL = "\x1b[31mred\u202e[bold]x[/bold]\x07"


@pytest.fixture
def hostile(tmp_path):
    """A kohya file with one key, and one metadata entry, that would steer a terminal."""
    import torch

    from tests.files import SD1_KOHYA, kohya_tensors, save

    tensors = {**kohya_tensors(SD1_KOHYA), f"{EVIL}.weight": torch.ones(2)}
    return save(tensors, tmp_path / "hostile.safetensors", {"modelspec.trigger_phrase": EVIL, "note": EVIL})


def on_a_terminal(*arguments, columns=80, env=None):
    """What a command writes when stdout and stderr are one terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "loratools", *map(str, arguments)],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **(env or {})},
    )
    os.close(follower)
    pieces = []

    def drain():
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # Linux says EIO when the last writer has gone
                return
            if not piece:
                return
            pieces.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    code = process.wait(timeout=60)
    reader.join(timeout=10)
    os.close(leader)
    return code, b"".join(pieces).decode()


QUERIES = [
    ["inspect", "SD1"],
    ["inspect", "SD1", "--modules", "-v"],
    ["compare", "SD1", "SD1", "-v"],
    ["formats"],
    ["architectures"],
]


def filled(arguments, sd1):
    return [sd1 if word == "SD1" else word for word in arguments]


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "40"}], ids=str)
@pytest.mark.parametrize("arguments", QUERIES, ids=" ".join)
def test_a_pipe_gets_no_escape_codes(run, sd1, arguments, env):
    done = run(*filled(arguments, sd1), env=env)
    assert done.returncode in {0, 1}, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.strip()


def test_a_terminal_gets_colour(sd1):
    code, text = on_a_terminal("inspect", sd1)
    assert code == 0
    assert "\x1b[" in text


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_that_wants_no_colour_gets_none(sd1, env):
    code, text = on_a_terminal("inspect", sd1, env=env)
    assert code == 0
    assert "\x1b" not in text


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_keep_to_the_width_of_the_terminal(columns):
    _, text = on_a_terminal("formats", columns=columns, env={"NO_COLOR": "1"})
    assert max(len(line.rstrip("\r")) for line in text.split("\n")) <= columns


def test_piped_rows_are_never_folded(run, sd1):
    done = run("inspect", sd1, "--modules", env={"COLUMNS": "40"})
    assert any("transformer_blocks.0.ff.net.0.proj" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("arguments", QUERIES, ids=" ".join)
def test_json_is_one_document_wherever_the_option_stands(inside, sd1, arguments, place):
    words = filled(arguments, sd1)
    done = inside("--json", *words) if place == "before" else inside(*words, "--json")
    document = json.loads(done.stdout)
    assert document["schema"].startswith("loratools.")
    assert done.stderr == ""


def test_several_refs_give_one_document_in_order_and_a_bad_one_keeps_its_place(inside, sd1, sdxl, tmp_path):
    done = inside("inspect", "--json", sdxl, tmp_path / "none.safetensors", sd1)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["schema"] == "loratools.inspect/1"
    first, second, third = document["results"]
    assert (first["architecture"], third["architecture"]) == ("sdxl", "sd1")
    assert (second["schema"], second["code"]) == ("loratools.error/1", "path-not-found")


@pytest.mark.parametrize(
    "arguments", [["inspect"], ["inspect", "-v"], ["inspect", "--modules"], ["convert"]], ids=" ".join
)
def test_names_from_files_never_steer_a_terminal(inside, hostile, tmp_path, arguments):
    more = [tmp_path / "out.safetensors", "--to", "diffusers"] if arguments == ["convert"] else []
    done = inside(arguments[0], hostile, *arguments[1:], *more)
    said = done.stdout + done.stderr
    for hidden in "\x1b\x07\u202e":
        assert hidden not in said
    assert r"\x1b[31mred\u202e[bold]x[/bold]" in said, said


def test_names_in_json_are_exact(inside, hostile):
    document = json.loads(inside("inspect", "--json", hostile).stdout)
    assert f"{EVIL}.weight" in [item["key"] for item in document["unknown_keys"]]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_encoding_of_stdout_fails_a_command(run, hostile, encoding):
    done = run("inspect", "-v", hostile, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["formats"], ["formats", "--json"], ["convert", "--help"]], ids=" ".join
)
def test_a_reader_that_goes_away_is_no_failure(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "loratools", *arguments], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_under_stdout_is_5():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loratools", "formats"], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr


def test_without_stdout_at_all_nothing_breaks():
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m loratools formats >&-'], stderr=subprocess.PIPE, check=False, timeout=60
    )
    assert b"Traceback" not in done.stderr


def test_errors_as_text_say_what_where_and_what_to_do(inside, tmp_path):
    done = inside("inspect", tmp_path / "missing.safetensors")
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert str(tmp_path / "missing.safetensors") in done.stderr


def test_a_plan_writes_nothing(inside, sd1, tmp_path):
    done = inside("convert", "--json", sd1, tmp_path / "o.safetensors", "--to", "diffusers", "--dry-run")
    assert done.returncode == 0, done.stdout
    plan = json.loads(done.stdout)
    assert plan["files"][0]["bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_plan_tells_the_free_disk_and_refuses_where_the_work_would(inside, sd1, tmp_path):
    done = inside("convert", "--json", sd1, tmp_path / "o.safetensors", "--to", "diffusers", "--dry-run")
    assert json.loads(done.stdout)["free_disk"] > 0
    assert "free disk" in inside("convert", sd1, tmp_path / "o.safetensors", "--to", "diffusers", "--dry-run").stdout
    for out in (sd1, tmp_path, tmp_path / "no" / "o.safetensors", tmp_path / "o.ckpt"):
        assert inside("convert", sd1, out, "--to", "diffusers", "--dry-run", "--overwrite").returncode == 2, out
    assert inside("convert", sd1, "--to", "diffusers", "--dry-run").returncode == 0


@pytest.mark.parametrize("spelt", ["F16", "f16", "fp16", "Half", "float16"])
def test_a_dtype_is_known_by_all_its_names(inside, sd1, spelt):
    assert inside("convert", sd1, "--to", "kohya", "--dtype", spelt, "--dry-run").returncode == 0


def test_pages_and_errors_of_several_files_come_in_their_order(run, sd1, sdxl, tmp_path):
    done = run("inspect", sdxl, tmp_path / "none.safetensors", sd1, stderr=subprocess.STDOUT)
    at = [done.stdout.index(str(path)) for path in (sdxl, tmp_path / "none.safetensors", sd1)]
    assert at == sorted(at)


def test_the_demo_says_its_own_words_alone_and_leaves_nothing_behind(run, tmp_path):
    done = run("demo", env={"TMPDIR": str(tmp_path)}, timeout=600)
    # An empty folder that torch makes when diffusers imports its compiler.
    assert [
        path for path in tmp_path.rglob("*") if not str(path.relative_to(tmp_path)).startswith("torchinductor_")
    ] == []
    assert done.returncode == 0, done.stderr
    said = ("making", "converting", "merging", "extracting", "resizing", "combining", "rebuilding", "validating")
    for line in done.stderr.splitlines():
        assert line.startswith(said), line
    assert "nothing is kept" in done.stdout


def test_the_demo_keeps_to_a_folder_of_its_own(inside, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert inside("demo", "--keep", tmp_path).returncode == 2
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]


def test_the_words_of_kohya_mean_the_same(inside, sd1, tmp_path):
    ours, kohya = tmp_path / "ours.safetensors", tmp_path / "kohya.safetensors"
    first = inside("convert", sd1, ours, "--to", "diffusers", "--dtype", "bfloat16")
    second = inside("convert", "--models", sd1, "--save_to", kohya, "--to", "diffusers", "--save_precision", "bf16")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert ours.read_bytes() == kohya.read_bytes()


def test_if_needed_does_nothing_the_second_time(inside, sd1, tmp_path):
    out = tmp_path / "o.safetensors"
    arguments = ["convert", "--json", sd1, out, "--to", "diffusers", "--if-needed"]
    first, stamp = inside(*arguments), out.stat().st_mtime_ns
    second = inside(*arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + second.stdout
    assert json.loads(first.stdout)["skipped"] is False
    assert json.loads(second.stdout)["skipped"] is True
    assert out.stat().st_mtime_ns == stamp


# Help


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_command_has_help_that_begins_as_the_overview_says(verb):
    result = CliRunner().invoke(cli, [verb, "-h"])
    assert result.exit_code == 0
    summary = next(item.summary for item in VERBS if item.name == verb)
    assert summary in result.output
    assert f"  {verb} " in CliRunner().invoke(cli, ["--help"]).output


def test_every_option_is_explained():
    for verb in VERBS:
        command = cli.get_command(None, verb.name)
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.param_type_name == "argument", (
                verb.name,
                parameter.name,
            )


def test_the_version_is_the_packages():
    import loratools

    assert CliRunner().invoke(cli, ["--version"]).output == f"loratools {loratools.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion_script(run, shell):
    done = run(env={"_LORATOOLS_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0 if shell != "bash" else done.returncode in {0, 1}
    assert "_LORATOOLS_COMPLETE" in done.stdout


def test_formats_complete(run):
    done = run(
        env={"_LORATOOLS_COMPLETE": "bash_complete", "COMP_WORDS": "loratools convert --to di", "COMP_CWORD": "3"}
    )
    assert "plain,diffusers" in done.stdout
