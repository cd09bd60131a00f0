"""The card of a rebuilt pipeline calls it as its class can be called."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from loratools.hub.tasks import PICTURES
from loratools.operations.rebuilding.card import Card
from loratools.operations.recipes.record import Ingredient


def classes(task):
    """The names in diffusers' own table of pipelines for a task."""
    text = (Path(find_spec("diffusers").origin).parent / "pipelines" / "auto_pipeline.py").read_text()
    table = re.search(rf"AUTO_{task}_PIPELINES_MAPPING = OrderedDict\((.*?)\n\)", text, re.DOTALL)
    return set(re.findall(r"\"[\w.-]+\", (\w+)\)", table[1]))


FROM_PROMPTS = {name for name in classes("TEXT2IMAGE") if "Control" not in name}  # those want a drawing as well


@pytest.mark.parametrize("task", ["TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT"])
def test_a_prompt_alone_is_given_to_pipelines_that_need_no_picture(task):
    names = FROM_PROMPTS if task == "TEXT2IMAGE" else classes(task) - FROM_PROMPTS
    assert len(names) > 5
    wrong = []
    for name in names:
        text = Card((Ingredient("base", "a model", ()),), name, PICTURES).render({}).decode()
        if ('pipeline("' in text) != (task == "TEXT2IMAGE"):
            wrong.append(name)
    assert sorted(wrong) == []


PIPELINES = Path(find_spec("diffusers").origin).parent / "pipelines"
WITHOUT_TEXT = {
    "ConsistencyModelPipeline", "DDIMPipeline", "DDPMPipeline", "DiTPipeline", "RFD4ProteinaPipeline",
}  # fmt: skip
"""Of no architecture that has adapters."""


def needing_more():
    """The pipelines of diffusers whose call takes no prompt, or does not do with one."""
    for path in sorted(PIPELINES.rglob("pipeline_*.py")):
        if "flax" in path.name or "onnx" in path.name or "deprecated" in path.parts:
            continue
        for found in ast.parse(path.read_text()).body:
            for method in found.body if isinstance(found, ast.ClassDef) and found.name.endswith("Pipeline") else ():
                if isinstance(method, ast.FunctionDef) and method.name == "__call__":
                    names = [argument.arg for argument in method.args.args[1:]]
                    needed = names[: len(names) - len(method.args.defaults)]
                    if "prompt" not in names or set(needed) - {"prompt"}:
                        yield found.name


def test_no_pipeline_that_needs_more_is_given_a_prompt_alone():
    names = sorted(set(needing_more()) - WITHOUT_TEXT)
    assert {"HunyuanVideoFramepackPipeline", "KandinskyV22Pipeline", "WanAnimatePipeline"} < set(names)
    cards = {name: Card((Ingredient("base", "a model", ()),), name, PICTURES).render({}).decode() for name in names}
    assert [name for name, text in cards.items() if 'pipeline("' in text] == []
