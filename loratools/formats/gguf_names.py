"""llama.cpp's names for the layers of language models, as its package `gguf` maps them to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from loratools.adapters.adapter import AdapterSet
from loratools.architectures.llm import PREFIX, architecture_id, model_types
from loratools.architectures.llm_namings import LanguageNaming
from loratools.architectures.naming import Placement
from loratools.errors import ArchitectureMismatch, NotRepresentable
from loratools.tensors.gguf_check import ARCHITECTURE, gguf_package

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
_OUR_BLOCK = re.compile(r"(.*\blayers\.)(\d+)\.(.+)")
_ROOTS = ("model.", "lm_head")
_ANY_LAYER = "model.layers.0.input_layernorm"


@cache
def _natives(architecture: str) -> dict[str, str]:
    """transformers' name → native name, of the same."""
    return {theirs: native for native, theirs in _names(architecture).items()}


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
    package, wanted = gguf_package(), RENAMED[architecture]
    arch = next(key for key, name in package.MODEL_ARCH_NAMES.items() if name == architecture)
    mapping = package.get_tensor_name_map(arch, 1).mapping
    return {
        native: theirs
        for theirs, (_, native) in mapping.items()
        if theirs.startswith(_ROOTS) and wanted in model_types([theirs, _ANY_LAYER])
    }


class GgufNaming(NamedTuple):
    """llama.cpp's names of one of its architectures, over a naming that says which layers are one."""

    architecture: str
    fused: LanguageNaming = LanguageNaming()

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{FORMAT} {self.architecture}"

    def at_canonical(self, path: str) -> Placement | None:
        """The placement of the layer that holds a canonical path, None where llama.cpp has no name for it."""
        placement = self.fused.at_canonical(path)
        block = _OUR_BLOCK.fullmatch(placement.native)
        first = f"{block[1]}0.{block[3]}" if block else placement.native
        theirs = _natives(self.architecture).get(first)
        if theirs is None:
            return None
        return placement._replace(native=theirs.replace("blk.0.", f"blk.{block[2]}.", 1) if block else theirs)


def gguf_naming(adapters: AdapterSet, fused: object) -> GgufNaming:
    """The names of a model that is settled, over the naming `fused` of the source or that was asked for.

    Raises ArchitectureMismatch where it is not settled, NotRepresentable where llama.cpp's converter does more to its
    weights than rename them, or nobody has looked.
    """
    # A language model may be a pipeline's text encoder, too; no GGUF file is for a pipeline.
    architectures = [name for name in adapters.architectures if name.startswith(PREFIX)] or adapters.architectures
    path = next((item.origin.file for item in adapters.adapters if item.origin), None)
    ids = {architecture_id(theirs): ours for ours, theirs in RENAMED.items()}
    before = next((name for name, ours in ids.items() if ours == adapters.metadata.get(ARCHITECTURE)), None)
    if before is not None and before in architectures:  # what was converted from such a file
        architectures = [before]
    if len(architectures) > 1:
        known = [name for name in architectures if name in ids]
        raise ArchitectureMismatch(
            f"the file fits {' and '.join(architectures[:4])}, and a GGUF file names its model",
            path=path,
            hint=f"say which with --arch {known[0]}" if known else f"{FORMAT} is written for {', '.join(ids)}",
            candidates=list(architectures),
        )
    found = ids.get(architectures[0])
    if found is None:
        raise NotRepresentable(
            f"{FORMAT} is not written for {architectures[0].removeprefix(PREFIX)}: llama.cpp puts rows of q and k in "
            "an order of its own there by the number of heads, or is not known to leave them",
            path=path,
            hint=f"it is for {', '.join(ids)} (--arch); llama.cpp's own converter takes --to peft and the base model",
        )
    return GgufNaming(found, fused if isinstance(fused, LanguageNaming) else LanguageNaming())


def require_named(adapters: AdapterSet) -> None:
    """Raise NotRepresentable for layers of a GGUF file whose names and rows are llama.cpp's own."""
    for item in adapters.adapters:
        if adapters.dialect.format == FORMAT and item.origin and item.origin.stem == item.target.paths[0]:
            name = adapters.metadata.get(ARCHITECTURE, "?")
            raise NotRepresentable(
                f"{item.target.name} of {name}: llama.cpp puts rows of q and k in an order of its own by the number of "
                "heads, which an adapter does not tell",
                path=item.origin.file,
                key=item.origin.stem,
                hint=f"what its converter only renames is converted: {', '.join(RENAMED)}",
            )
