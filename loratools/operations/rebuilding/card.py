"""The model card of a merged pipeline: what it was made of, how to load it, what is not known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loratools.hub.tasks import Task
from loratools.operations.outputs.provenance import PENDING
from loratools.operations.recipes.record import RECIPE, Ingredient
from loratools.tensors.source import LocalFile

BEYOND_PROMPTS = (
    "6SR", "ConsisID", "Control", "Decode", "Depth", "Edit", "Fill", "FirstLast", "Framepack", "I2I", "I2V",
    "Image2Video", "ImageToVideo", "ImageVariation", "Img2Img", "Inpaint", "KandinskyPipeline", "Layered", "Marigold",
    "Pix2Pix", "Prior", "Redux", "SanaWM", "StableVideo", "SuperResolution", "Transfer", "Upsample", "Upscale",
    "V22Pipeline", "VideoToVideo", "VisualCloze", "WanAnimate",
)  # fmt: skip
"""What stands in the names of pipelines that start from a picture, or from another pipeline's results."""


@dataclass(frozen=True)
class Card:
    """What a card tells. `pipeline` is the name of its class; `task` is what that makes, where it is told; `hub_base`
    is the base's name on the Hub, where it has one; `base_licence` what its own card says; `words` are the trigger
    words by adapter; `variant` is needed to load it; `linked` files may be hard links.
    """

    ingredients: Sequence[Ingredient]
    pipeline: str
    task: Task | None = None
    hub_base: str | None = None
    base_licence: str | None = None
    words: Mapping[str, Sequence[str]] | None = None
    variant: str | None = None
    linked: bool = False

    def render(self, hashes: Mapping[LocalFile, str]) -> bytes:
        """The card as a Markdown file with front matter; files without a hash get a place for one."""
        base = next(item for item in self.ingredients if item.role == "base")
        adapters = [item for item in self.ingredients if item.role == "adapter"]
        front = {
            "base_model": self.hub_base,
            "base_model_relation": "merge" if self.hub_base and adapters else None,
            "library_name": "diffusers",
            "license": "unknown",
            "pipeline_tag": self.task.tag if self.task else None,
            "tags": ["diffusers", *(["lora", "merge"] if adapters else []), "loratools"],
        }
        # A JSON value is a YAML value: whatever stands in a name, it stays a name.
        lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None), "---"]
        title = plain(base.name) + (f" with {', '.join(plain(item.name) for item in adapters)}" if adapters else "")
        lines += ["", f"# {title}", ""]
        if adapters:
            lines += [f"{plain(base.name)}, into whose weights these adapters were merged:", ""]
            lines += ["| adapter | scale | SHA-256 |", "|---|---|---|"]
            lines += [f"| {plain(item.name)} | {item.scale:g} | {_hashes(item, hashes)} |" for item in adapters]
        else:
            lines += [f"{plain(base.name)} as a pipeline folder; no adapter was merged."]
        for name, words in (self.words or {}).items():
            lines += ["", f"Words that call {plain(name)}: {', '.join(plain(word) for word in words)}"]
        variant = f', variant="{self.variant}"' if self.variant else ""
        made, chosen = (self.task.one, f".{self.task.results}[0]") if self.task else ("result", "")
        call = f'{made} = pipeline("a photograph of an astronaut riding a horse"){chosen}'
        if any(word in self.pipeline for word in BEYOND_PROMPTS):
            call = "help(pipeline.__call__)  # it needs more than a prompt"
        lines += [
            "",
            "## Use",
            "",
            "```python",
            "from diffusers import DiffusionPipeline",
            "",
            f'pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder"{variant})',
            call,
            "```",
            "",
            "## Licence",
            "",
            "Unknown: a merged model is bound by the licences of its base and of every adapter.",
        ]
        if self.base_licence:
            lines += [f"The card of the base model says: {plain(self.base_licence)}."]
        lines += ["", "## Made by", "", f"loratools; `{RECIPE}` holds inputs, hashes and parameters."]
        if self.linked:
            lines.append(
                "Weights that no adapter changes may be hard links to the base model's own files: changing such a file "
                "in place would change the base model, too. Copying the folder to another disk parts them."
            )
        return ("\n".join(lines) + "\n").encode()


def _hashes(item: Ingredient, hashes: Mapping[LocalFile, str]) -> str:
    return ", ".join(f"`{hashes.get(file, PENDING)}`" for _, file in item.files) or "in memory"


def plain(text: str) -> str:
    """A name from elsewhere as text that Markdown and HTML take for nothing else."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    for mark in "\\`*_[]<>|#":
        shown = shown.replace(mark, f"\\{mark}") if mark not in "<>`" else shown.replace(mark, "")
    return shown
