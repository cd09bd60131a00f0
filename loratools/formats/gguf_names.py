"""llama.cpp's names for the layers of language models, as its package `gguf` maps them to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from loratools.adapters.adapter import AdapterSet
from loratools.architectures.llm import model_types
from loratools.errors import NotRepresentable

FORMAT = "gguf"

# llama.cpp's architecture → transformers' model type, where its converter renames weights and moves no row of them. In
# others it does: the rows of Llama's q and k stand by halves of heads, and how many heads there are no adapter says.
RENAMED = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ROOTS = ("model.", "lm_head")
_ANY_LAYER = "model.layers.0.input_layernorm"


def path_in(architecture: str) -> Callable[[str], str]:
    """native path → the path of transformers' module; the native one itself where there is no telling."""
    names = _names(architecture) if architecture in RENAMED else {}

    def path(native: str) -> str:
        block = _BLOCK.fullmatch(native)
        if block is None:
            return names.get(native, native)
        ours = names.get(f"blk.0.{block[2]}")
        return native if ours is None else ours.replace(".0.", f".{block[1]}.", 1)

    return path


@cache
def _names(architecture: str) -> dict[str, str]:
    """native name → transformers' name, of what is outside the blocks and of the first block."""
    import gguf

    wanted = RENAMED[architecture]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    mapping = gguf.get_tensor_name_map(arch, 1).mapping
    return {
        native: theirs
        for theirs, (_, native) in mapping.items()
        if theirs.startswith(_ROOTS) and wanted in model_types([theirs, _ANY_LAYER])
    }


def require_named(adapters: AdapterSet) -> None:
    """Raise NotRepresentable for layers of a GGUF file whose names and rows are llama.cpp's own."""
    for item in adapters.adapters:
        if adapters.dialect.format == FORMAT and item.origin and item.origin.stem == item.target.paths[0]:
            name = adapters.metadata.get("general.architecture", "?")
            raise NotRepresentable(
                f"{item.target.name} of {name}: llama.cpp puts rows of q and k in an order of its own by the number of "
                "heads, which an adapter does not tell",
                path=item.origin.file,
                key=item.origin.stem,
                hint=f"what its converter only renames is converted: {', '.join(RENAMED)}",
            )
