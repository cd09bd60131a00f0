"""PEFT: `base_model.model.….lora_A.weight` beside an adapter_config.json, one folder a component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loratools.architectures.architecture import Architecture, Component
from loratools.formats.configs import Config, Module, build
from loratools.formats.format import Format, Options
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling

PREFIX = "base_model.model."


def _spell(architecture: Architecture | None, component: Component | None, options: Options) -> Spelling | None:
    """The real module paths: transformers ≥ 5.6 has no `text_model.` inside CLIPTextModel, older versions have."""
    if architecture is None or component is None:
        return Spelling(PREFIX, "", False, WRITTEN["peft"])
    flat = component.naming("flat")
    naming = flat if flat is not None and options.clip_prefix != "text_model" else component.namings[0]
    return Spelling(PREFIX, naming.name, False, WRITTEN["peft"])


# What a configuration says beside ranks and alphas and stays true when an adapter is written again.
_CARRIED = (
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "layer_replication",
    "modules_to_save",
    "revision",
    "task_type",
    "trainable_token_indices",
)


def carried(config: Config) -> dict[str, Any]:
    """The fields of a source's configuration that its new one keeps; without modules_to_save PEFT would drop them."""
    found = {field: config[field] for field in _CARRIED if config.get(field) is not None}
    return {"base_model_name_or_path": config["model"], **found} if config.get("model") else found  # MLX' word for it


def config(
    modules: Sequence[tuple[str, int, Any]], parameters: Sequence[tuple[str, int, Any]] = (), **fields: Any
) -> dict[str, Any]:
    """adapter_config.json for (path, rank, alpha) of every module, and of every parameter that is no module's weight;
    each pattern is anchored to the whole path.
    """
    rows = [Module(path, f"^{path}", rank, alpha) for path, rank, alpha in (*modules, *parameters)]
    made = _config(rows, **fields)
    if parameters:
        made["target_parameters"] = sorted({path for path, _, _ in parameters})
        made["target_modules"] = [name for name in made["target_modules"] if name not in made["target_parameters"]]
    return made


def _config(rows: Sequence[Module], **fields: Any) -> dict[str, Any]:
    return {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
        **build(rows, **fields),
    }


PEFT = Format(
    id="peft",
    title="PEFT: an adapter folder for each component, alpha in adapter_config.json",
    readers=("peft", "vllm"),
    alpha="config",
    kinds=("lora", "loha", "lokr", "ia3", "oft"),
    spell=_spell,
    folder=True,
    extras=(PREFIX,),
)
