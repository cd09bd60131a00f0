"""What is needed to do a validation again: which pipeline and adapters, their hashes, and every version."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loratools.bases.pipeline_index import PIPELINE, components_of
from loratools.formats.opening import read_config
from loratools.operations.outputs.provenance import InputHashes
from loratools.operations.validation.inputs import Inputs

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")


def versions(device: str) -> dict[str, str]:
    """Versions of ourselves, of Python and of the libraries that take part, and the device by name."""
    import platform

    import torch

    from loratools import __version__

    found = {"loratools": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # accelerate is optional
            continue
    on_cuda = device.startswith("cuda")
    found["device"] = torch.cuda.get_device_name(device) if on_cuda else f"{device} ({platform.machine()})"
    return found


def pipeline_facts(inputs: Inputs, hashes: InputHashes) -> dict[str, Any]:
    """The pipeline: its folder, class, components, and the SHA-256 of its files of weights."""
    made = inputs.folder != inputs.base
    index = read_config(inputs.folder / PIPELINE)
    known = [item["sha256"] for item in hashes.inputs()]
    return {
        "path": str(inputs.base),
        "rebuilt": made,
        "class": index.get("_class_name"),
        "architecture": inputs.architecture,
        "variant": inputs.variant,
        "components": list(components_of(index)),
        "files": [{"name": name, "sha256": digest} for (name, _), digest in zip(inputs.files, known, strict=False)],
    }


def adapter_facts(inputs: Inputs, hashes: InputHashes) -> tuple[Mapping[str, Any], ...]:
    """Each adapter: where it is, what it is, its scale, and the SHA-256 of its files."""
    known = [item["sha256"] for item in hashes.inputs()][len(inputs.files) :]
    rows: list[Mapping[str, Any]] = []
    for lora, scale in inputs.given:
        files = lora.reading.opened.files
        digests, known = known[: len(files)], known[len(files) :]
        rows.append(
            {
                "path": lora.name,
                "format": lora.format,
                "kinds": list(lora.kinds),
                "components": list(lora.components),
                "adapters": len(lora.adapters),
                "scale": scale,
                "files": [
                    {"name": Path(file.name).name, "sha256": digest}
                    for file, digest in zip(files, digests, strict=True)
                ],
            }
        )
    return tuple(rows)
