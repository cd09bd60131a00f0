"""The model card of an adapter on the Hub: what is ours to say is added to a card, what stands there already stays."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loratools.operations.hash import Hashes
from loratools.operations.rebuilding.card import plain

BEGINS, ENDS = "<!-- loratools -->", "<!-- end of loratools -->"
_OURS = re.compile(rf"{re.escape(BEGINS)}.*?{re.escape(ENDS)}\n?", re.DOTALL)


class Facts(NamedTuple):
    """What a card tells of one adapter. `task` is the Hub's word for what its model makes, where that is told;
    `base_model` is a name on the Hub; `images` are (file, prompt).

    `diffusers_loads` says whether its own loader makes the right change of every layer.
    """

    repository: str
    title: str
    file: str
    architecture: str | None
    task: str | None
    format: str
    kinds: Sequence[str]
    ranks: Sequence[int]
    base_model: str | None
    words: Sequence[str]
    images: Sequence[tuple[str, str]]
    hashes: Hashes
    recipes: Mapping[str, str]
    diffusers_loads: bool

    @property
    def library(self) -> str:
        """The library that loads it."""
        return "peft" if self.task == "text-generation" else "diffusers"


def front_matter(facts: Facts, standing: Mapping[str, Any]) -> dict[str, Any]:
    """The front matter: every key that stands stays as it is; tags and widgets are joined, missing keys are added."""
    found = dict(standing)
    ours = {
        "base_model": facts.base_model,
        "base_model_relation": "adapter" if facts.base_model or standing.get("base_model") else None,
        "library_name": facts.library,
        "pipeline_tag": facts.task,
        "instance_prompt": facts.words[0] if facts.words else None,
    }
    found |= {key: value for key, value in ours.items() if value is not None and key not in found}
    kinds = [kind for kind in facts.kinds if kind not in ("full", "norm")] or ["lora"]
    template = ["template:sd-lora"] if facts.library == "diffusers" else []
    found["tags"] = _joined(standing.get("tags"), [*kinds, facts.library, *template, "loratools"])
    if facts.images:
        told = [{"text": prompt or "-", "output": {"url": file}} for file, prompt in facts.images]
        found["widget"] = _joined(standing.get("widget"), told)
    return found


def _joined(standing: Any, more: Sequence[Any]) -> list[Any]:
    """A list that stands, and what it lacks."""
    there = list(standing) if isinstance(standing, list) else [standing] if standing else []
    return [*there, *(item for item in more if item not in there)]


def body(facts: Facts, standing: str) -> str:
    """The text below the front matter: our part is put in the place of the last, or after what stands."""
    part = f"{BEGINS}\n{_part(facts, gallery='<Gallery' not in _OURS.sub('', standing))}\n{ENDS}\n"
    if _OURS.search(standing):
        return _OURS.sub(lambda _: part, standing, count=1)
    before = standing.strip() or f"# {plain(facts.title)}"
    return f"{before}\n\n{part}"


def _part(facts: Facts, *, gallery: bool) -> str:
    lines = ["<Gallery />", ""] if facts.images and gallery else []
    rows = [
        ("file", f"`{facts.file}`"),
        ("architecture", facts.architecture),
        ("format", facts.format),
        ("kind", ", ".join(facts.kinds)),
        ("rank", ", ".join(map(str, facts.ranks))),
        ("base model", facts.base_model and f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"),
        ("words that call it", ", ".join(map(plain, facts.words))),
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value), ""]
    if facts.library == "diffusers" and facts.base_model:
        lines += ["## Use", "", "```python", *_use(facts), "```", ""]
    lines += ["## Hashes", "", "| file | SHA-256 | AutoV2 | AutoV3 |", "|---|---|---|---|"]
    for item in facts.hashes.files:
        sums = item.checksums
        name = item.path.rpartition("/")[2]
        lines.append(f"| `{name}` | `{sums.sha256}` | `{sums.autov2}` | `{sums.autov3 or ''}` |")
    if facts.hashes.fingerprint:
        lines += ["", f"Fingerprint, the same in every format: `{facts.hashes.fingerprint}`"]
    for name, recipe in facts.recipes.items():
        lines += ["", f"## How `{name}` was made", "", "```json", _indented(recipe), "```"]
    return "\n".join(lines)


def _use(facts: Facts) -> list[str]:
    """How the base and the adapter are loaded: by diffusers where its loader is right about all of it."""
    base = f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(facts.base_model)})"
    if facts.diffusers_loads:
        load = f"pipeline.load_lora_weights({json.dumps(facts.repository)}, weight_name={json.dumps(facts.file)})"
        return ["from diffusers import DiffusionPipeline", "", base, load]
    apply = f"lt.apply(pipeline, {json.dumps(f'hf://{facts.repository}/{facts.file}')})"
    return ["import loratools as lt", "from diffusers import DiffusionPipeline", "", base, apply]


def _indented(recipe: str) -> str:
    """A record as JSON of several lines; what is none is shown as it is, fences taken out."""
    try:
        return json.dumps(json.loads(recipe), indent=2, ensure_ascii=True)
    except (ValueError, RecursionError):
        return plain(recipe)
