"""README.md against the program: what it names exists, what exists is named."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

import loratools
from loratools.cli.failures import EXIT_CODES
from loratools.cli.main import VERBS, cli

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def command_lines():
    """Every `loratools …` line of a bash block, as words."""
    for language, text in BLOCKS:
        for line in text.splitlines() if language == "bash" else ():
            for part in line.split("&&"):
                words = shlex.split(part)
                if words and words[0].endswith("loratools"):
                    yield words[1:]


def test_every_command_stands_in_the_overview_and_none_that_is_not_there():
    overview = next(text for language, text in BLOCKS if language == "text" and "loratools inspect" in text)
    named = re.findall(r"^loratools ([a-z]+)", overview, flags=re.MULTILINE)
    assert sorted(named) == [verb.name for verb in VERBS]


@pytest.mark.parametrize("words", list(command_lines()), ids=" ".join)
def test_command_lines_parse(words):
    with cli.make_context("loratools", list(words), resilient_parsing=True) as above:
        command = cli.get_command(above, words[0])
        assert isinstance(command, click.Command)
        command.make_context(words[0], words[1:], parent=above).close()


def test_exit_codes_are_those_of_the_program():
    table = re.findall(r"^\| (\d+) \| (.+) \|$", README, flags=re.MULTILINE)
    assert [(int(code), meaning) for code, meaning in table] == list(EXIT_CODES)


def test_options_named_in_prose_exist():
    verbs = [cli.get_command(None, verb.name) for verb in VERBS]
    verbs += [part for verb in verbs if isinstance(verb, click.Group) for part in verb.commands.values()]
    known = {name for verb in verbs for item in verb.params for name in (*item.opts, *item.secondary_opts)}
    known |= {name for parameter in cli.params for name in parameter.opts}
    elsewhere = {"--extra-index-url"}  # pip's
    named = set(re.findall(r"`(--[a-z-]+)", README)) | set(re.findall(r"`loratools [^`]*?(--[a-z-]+)", README))
    assert named - elsewhere - {"--help"} <= known


def blocks(kind):
    return [text for language, text in BLOCKS if language == kind]


@pytest.fixture
def shop(adapters, tmp_path, monkeypatch):
    """A folder with an adapter in `loras/`, and the program on the path."""
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "style.safetensors").write_bytes((adapters / "sd1.safetensors").read_bytes())
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "loratools"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loratools "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def shell(command, folder):
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_makefile_makes_what_is_not_there_and_no_more(shop):
    (shop / "Makefile").write_text(blocks("make")[0])
    done = shell("make", shop)
    assert done.returncode == 0, done.stderr
    assert loratools.inspect(shop / "diffusers" / "style.safetensors").to_dict()["format"] == "diffusers"
    assert "Nothing to be done" in shell("make", shop).stdout


@pytest.mark.skipif(not shutil.which("snakemake"), reason="Snakemake is not installed")
def test_the_rule_of_snakemake_makes_the_same(shop):
    (shop / "Snakefile").write_text(blocks("snakemake")[0])
    done = shell("snakemake --cores 1", shop)
    assert done.returncode == 0, done.stderr
    assert (shop / "diffusers" / "style.safetensors").is_file()


def test_the_steps_of_the_workflow_pass_and_fail_as_they_should(shop):
    steps = yaml.safe_load(blocks("yaml")[0])["jobs"]["loras"]["steps"]
    commands = [step["run"] for step in steps if "run" in step and not step["run"].startswith("pip ")]
    for command in commands:
        done = shell(command, shop)
        assert done.returncode == 0, done.stderr
    assert (shop / "diffusers" / "style.safetensors").is_file()
    assert '"role": "adapter"' in (shop / "inspected.json").read_text()
    (shop / "loras" / "torn.safetensors").write_bytes(b"torn")
    assert [shell(command, shop).returncode for command in commands] == [3, 1]


PYTHON = [text for language, text in BLOCKS if language == "python"]


def test_python_names_exist():
    verbs = set()
    for block in PYTHON:
        compile(block, "README.md", "exec")
        verbs |= set(re.findall(r"\blt\.(\w+)", block))
    named = {name for name in loratools.__all__ if not name.startswith(("__", "supported_")) and name != "demo"}
    assert verbs == named


def test_the_python_block_runs_as_it_stands(adapters, tmp_path, monkeypatch):
    (tmp_path / "style.safetensors").write_bytes((adapters / "sd1.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(PYTHON[0], "README.md", "exec"), names)
    assert names["result"].proof.identical > 0


def test_the_block_about_bases_runs_as_it_stands(tmp_path, monkeypatch):
    from loratools.pipelines.adapters import make_demo_adapter
    from loratools.pipelines.synthetic import make_pipeline

    make_demo_adapter(make_pipeline("sd1", tmp_path / "pipeline"), tmp_path / "style.safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(PYTHON[1], "README.md", "exec"), names)
    assert names["extracted"].to_dict()["error"] < 1e-3
    live = next(block for block in PYTHON if "lt.apply" in block)
    exec(compile(live, "README.md", "exec"), names)
    assert names["style"].removed


def test_the_block_about_hashes_and_metadata_runs_as_it_stands(adapters, tmp_path, monkeypatch):
    (tmp_path / "style.safetensors").write_bytes((adapters / "sd1.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(next(text for text in PYTHON if "lt.hash" in text), "README.md", "exec"), names)
    assert loratools.hash("public.safetensors").fingerprint == names["found"].fingerprint


def test_the_block_about_many_files_runs_as_it_stands(adapters, tmp_path, monkeypatch):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "style.safetensors").write_bytes((adapters / "sd1.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(next(text for text in PYTHON if "lt.Batch" in text), "README.md", "exec"), names)
    assert (names["many"].done, names["many"].failed) == (1, 0)


def test_the_block_that_makes_pipelines_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(text for text in PYTHON if "make_pipeline" in text)
    exec(compile(block, "README.md", "exec"), {})
    assert loratools.inspect("half.safetensors").to_dict()["architecture"] == "sdxl"


def test_every_public_verb_is_callable_after_every_part_of_the_package_was_imported():
    import loratools.operations.catalogue
    import loratools.operations.inspect

    for name in loratools.__all__:
        assert name.startswith("__") or callable(getattr(loratools, name)), name


def test_folders_and_files_named_exist():
    for folder in re.findall(r"^\| `([a-z_]+/)` \|", README, flags=re.MULTILINE):
        assert (REPOSITORY / "loratools" / folder).is_dir(), folder
    for name in re.findall(r"`((?:architectures|formats|adapters|cli)/\w+\.py)`", README):
        assert (REPOSITORY / "loratools" / name).is_file(), name
    for name in re.findall(r"`((?:benchmarks|fixtures)/\w+\.py)`", README):
        assert (REPOSITORY / name).is_file(), name


def test_the_test_command_can_be_split_where_ci_splits_it():
    marked = re.search(r"<!-- test command -->\n```bash\n(.+)\n```", README)
    assert marked is not None
    set_up, _, tests = marked[1].rpartition(" && ")
    assert "constraints.txt" in set_up
    assert "torch==2.13.0" in set_up
    assert tests.startswith(".venv/bin/pytest")


@pytest.mark.parametrize("table", ["figures", "hub", "loading"])
def test_figures_are_those_of_the_newest_results(table):
    done = subprocess.run(
        [sys.executable, "-c", f"import readme; print(readme.{table}(), end='')"],
        cwd=REPOSITORY / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(rf"<!-- {table} -->\n(.*?)<!-- end of {table} -->", README, flags=re.DOTALL)[1] == done.stdout
