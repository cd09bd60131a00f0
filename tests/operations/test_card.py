"""The card of a rebuilt pipeline calls it as its class can be called."""

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
