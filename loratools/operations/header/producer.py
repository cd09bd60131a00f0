"""What the metadata tells of a file's making: the tool, the base model, the trigger words, the training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from loratools.adapters.adapter import AdapterSet
from loratools.formats.configs import DIFFUSERS_KEY

# metadata key → what each beginning of its value says; the first row that speaks wins
_TOOLS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loratools.provenance", (("", "loratools"),)),
    ("ss_network_module", (("lycoris", "lycoris"), ("networks.", "sd-scripts"), ("", "sd-scripts"))),
    ("software", (('{"name": "ai-toolkit"', "ai-toolkit"), ("ai-toolkit", "ai-toolkit"))),
    ("modelspec.implementation", (("https://github.com/kohya-ss", "sd-scripts"), ("diffusers", "diffusers"))),
    (DIFFUSERS_KEY, (("", "diffusers"),)),
)
_MUSUBI = ("networks.lora_wan", "networks.lora_hv", "networks.lora_qwen", "networks.lora_framepack")
_FACTS: Mapping[str, str] = {
    "ss_output_name": "name",
    "ss_network_module": "network_module",
    "ss_network_dim": "network_dim",
    "ss_network_alpha": "network_alpha",
    "ss_learning_rate": "learning_rate",
    "ss_num_train_images": "images",
    "ss_num_epochs": "epochs",
    "ss_steps": "steps",
    "ss_optimizer": "optimizer",
    "ss_resolution": "resolution",
    "ss_clip_skip": "clip_skip",
    "ss_seed": "seed",
    "ss_base_model_version": "base_model_version",
    "ss_training_comment": "comment",
}
# a word of a configuration → the tool that writes it
_CONFIGS = (("peft_type", "peft"), ("lora_parameters", "mlx-lm"))
_MANY = 10


def producer(held: AdapterSet) -> str | None:
    """The tool that seems to have written the file, or None."""
    for key, rows in _TOOLS:
        value = held.metadata.get(key)
        if value is not None:
            if key == "ss_network_module" and value.startswith(_MUSUBI):
                return "musubi-tuner"
            found = next((tool for start, tool in rows if value.startswith(start)), None)
            if found:
                return found
    return next((tool for config in held.configs.values() for word, tool in _CONFIGS if word in config), None)


def base_model(held: AdapterSet) -> str | None:
    """The base model that a configuration or the metadata names, or None."""
    for config in held.configs.values():
        named = config.get("base_model_name_or_path") or config.get("model")
        if isinstance(named, str) and named:
            return named
    for key in ("ss_sd_model_name", "modelspec.base_model", "base_model"):
        if held.metadata.get(key):
            return held.metadata[key]
    return None


def training(metadata: Mapping[str, str]) -> dict[str, str]:
    """The facts of training that sd-scripts' family writes, under short names."""
    return {name: metadata[key] for key, name in _FACTS.items() if key in metadata and metadata[key] != "None"}


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that call the adapter: those its author wrote, else the tags of at least half the training captions."""
    for key in ("modelspec.trigger_phrase", "trigger_words", "instance_prompt"):
        if metadata.get(key):
            return [word.strip() for word in metadata[key].split(",") if word.strip()]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return []  # free text of a stranger's file: no trigger words is the right answer to anything unreadable
    most = max(counts.values(), default=0)
    return [tag for tag, count in counts.most_common(_MANY) if 2 * count > most] if most > 1 else []
