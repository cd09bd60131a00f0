"""Every LoRA loader of the installed diffusers has a table for its model, or a line that says why not."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from loratools.architectures.denoisers import DENOISERS
from loratools.architectures.registry import ARCHITECTURES

MIXIN = "LoraLoaderMixin"
# the components that loaders fill beside text encoders
NAMES = ("unet", "transformer", "transformer_2", "transformer_ref", "prior", "connectors", "text_conditioner")
LISTED = {row.name: row for row in DENOISERS}
# What loaders take whose models stand in no pipeline: the class that the loader is written for.
WITHOUT_PIPELINE = {"AmusedLoraLoaderMixin": {"UVit2DModel"}}

if importlib.util.find_spec("diffusers") is None:
    pytest.skip("diffusers is not installed", allow_module_level=True)


def root():
    return Path(importlib.util.find_spec("diffusers").origin).parent


# Text and not a syntax tree: the pipelines are a hundred thousand lines.
CLASS = re.compile(r"^class (\w+)\(([^)]*)\):(.*?)(?=^class |\Z)", re.MULTILINE | re.DOTALL)
CONSTRUCTOR = re.compile(r"def __init__\((.*?)\n    \)", re.DOTALL)
ARGUMENT = re.compile(rf"\b({'|'.join(NAMES)})\s*:\s*([^=,]+(?:\[[^]]*\])?)")
COMPONENT = re.compile(
    rf"ComponentSpec\(\s*(?:name=)?(?:\"({'|'.join(NAMES)})\"|self\.transformer_name),\s*(?:type_hint=)?(\w+)"
)


def named(annotation):
    """The classes that an annotation names."""
    names = re.findall(r"\w+", annotation)
    return {name for name in names if name[0].isupper() and name not in ("None", "Optional", "Union")}


def constructed(body):
    """The classes of the denoisers that a pipeline's constructor takes."""
    init = CONSTRUCTOR.search(body)
    return set().union(*(named(kind) for _, kind in ARGUMENT.findall(init[1]))) if init else set()


def specified(folder):
    """The classes of the denoisers that the blocks of a modular pipeline ask for."""
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    return set().union(*(named(kind) for text in texts for _, kind in COMPONENT.findall(text)))


@cache
def loaders():
    """loader → (pipeline, the classes of its denoisers) of every pipeline that inherits it."""
    found = {}
    for place in ("pipelines", "modular_pipelines"):
        for path in (root() / place).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for name, bases, body in CLASS.findall(text) if MIXIN in text else ():
                mixins = [base.strip() for base in bases.split(",") if base.strip().endswith(MIXIN)]
                classes = specified(path.parent) if "Modular" in name else constructed(body) if mixins else ()
                for mixin in mixins:
                    found.setdefault(mixin, {})[name] = classes
    return found


def test_every_loader_has_a_table_or_a_reason():
    pipelines = {name: classes for found in loaders().values() for name, classes in found.items()}
    assert len(pipelines) > 100
    assert [name for name, classes in pipelines.items() if not classes] == []
    unlisted = {kind for classes in pipelines.values() for kind in classes} - LISTED.keys()
    assert unlisted == set()


def test_every_mixin_is_a_pipelines_or_has_a_reason():
    text = (root() / "loaders" / "lora_pipeline.py").read_text(encoding="utf-8")
    mixins = {name for name, *_ in CLASS.findall(text) if name.endswith(MIXIN)}
    assert mixins - loaders().keys() <= WITHOUT_PIPELINE.keys()
    assert set().union(*WITHOUT_PIPELINE.values()) <= LISTED.keys()


def test_no_line_is_about_a_class_that_no_loader_fills():
    filled = {kind for found in loaders().values() for classes in found.values() for kind in classes}
    assert LISTED.keys() - filled - set().union(*WITHOUT_PIPELINE.values()) == set()


def test_every_line_names_a_table_or_a_reason():
    ids = {known.id for known in ARCHITECTURES}
    assert [row.name for row in DENOISERS] == sorted(LISTED)
    for row in DENOISERS:
        assert set(row.architectures) <= ids
        assert row.architectures or row.note
