"""The house: imports point down only, heavy libraries stay out of light paths."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "loratools"
# From the ground up. Those on one floor do not know each other.
FLOORS = (
    ("errors",),
    ("model",),
    ("tensors",),
    ("adapters", "architectures"),
    ("bases", "formats"),
    ("hub", "pipelines", "reports"),
    ("operations",),
    ("batch",),
    ("cli",),
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
# What no module imports when it is itself imported: seconds of start-up.
HEAVY = ("torch", "numpy", "safetensors", "diffusers", "gguf", "peft", "transformers", "huggingface_hub", "rich")
# Who may import what, inside functions. What is not listed is light.
ALLOWED = {
    "torch": {"adapters", "bases", "operations", "pipelines", "reports", "tensors"},
    "numpy": {"pipelines", "reports"},
    "safetensors": {"operations", "pipelines"},
    "diffusers": {"pipelines"},
    "gguf": {"tensors"},
    "peft": {"pipelines"},
    "transformers": {"pipelines"},
    "huggingface_hub": {"hub"},
    "rich": {"cli"},
}
# The root holds the public verbs, above everything but the command line; its version is a plain word for all.
ROOT = ("__init__", "__main__")

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(path):
    """(dotted module, whether it is imported with the module itself, line) of every import in a file."""
    return tuple(walked(path))


def walked(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(outer)
        for body in outer.body
        for node in ast.walk(body)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) not in inside, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "loratools":
                for name in node.names:
                    yield f"loratools.{name.name}", id(node) not in inside, node.lineno
            else:
                yield node.module, id(node) not in inside, node.lineno


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_every_part_of_the_package_has_its_floor():
    parts = {part_of(path) for path in FILES} - set(ROOT)
    assert parts <= set(FLOOR), f"no floor for {sorted(parts - set(FLOOR))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    part = part_of(path)
    if part in ROOT:
        pytest.skip("the root may import every floor")
    for module, _, line in imports(path):
        package, _, rest = module.partition(".")
        if package != "loratools" or rest == "__version__":
            continue
        other = rest.partition(".")[0]
        assert other in FLOOR, f"{path}:{line}: {module} is no part of the house"
        assert other == part or FLOOR[other] < FLOOR[part], f"{path}:{line}: {part} imports {other}, which is not below"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions_of_those_who_may(path):
    for module, at_import, line in imports(path):
        library = module.partition(".")[0]
        if library in HEAVY:
            typing_only = f"{path}:{line}: {library}"
            assert not at_import, f"{typing_only} is imported with the module"
            assert part_of(path) in ALLOWED[library], f"{typing_only} has no place in {part_of(path)}"


PROBE = """
import json, sys
from loratools.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("PROBE" + json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def modules_after(*arguments):
    """The exit code of a command line and the modules that it left imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        cwd=PACKAGE.parent,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stderr.rpartition("PROBE")[2])
    return found["code"], set(found["modules"]), done


LIGHT = ("torch", "numpy", "diffusers", "peft", "transformers", "safetensors", "huggingface_hub")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["inspect", "--help"], ["formats"], ["architectures"]], ids=" ".join
)
def test_light_commands_import_no_heavy_library(arguments):
    code, modules, _ = modules_after(*arguments)
    assert code == 0
    assert modules.isdisjoint(LIGHT)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["convert", "--help"]], ids=" ".join)
def test_help_imports_neither_rich_nor_operations(arguments):
    _, modules, _ = modules_after(*arguments)
    assert not [name for name in modules if name.split(".")[0] == "rich" or name.startswith("loratools.operations.")]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("file", ["sd1.safetensors", "sdxl.safetensors", "peft"])
def test_inspect_imports_no_heavy_library(adapters, file, form):
    code, modules, done = modules_after("inspect", adapters / file, *(["--json"] if form == "json" else []))
    assert code == 0, done.stderr
    assert modules.isdisjoint(LIGHT)


def test_a_file_is_hashed_and_fingerprinted_without_torch(sd1):
    code, modules, done = modules_after("hash", sd1, "--json")
    assert code == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint_of"] == "adapter"
    assert modules.isdisjoint(LIGHT)


def test_a_renaming_conversion_is_proven_without_torch(sd1, tmp_path):
    code, modules, done = modules_after("convert", sd1, tmp_path / "out.safetensors", "--to", "diffusers", "--json")
    assert code == 0, done.stderr
    proof = json.loads(done.stdout)["proof"]
    assert proof["identical"] > 0
    assert proof["measured"] == 0
    assert modules.isdisjoint(LIGHT)
