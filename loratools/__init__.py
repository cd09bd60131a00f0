"""loratools inspects, converts, merges, extracts and compares LoRA weights, and proves what it did.

The verbs are imported on first use, so that `import loratools` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loratools.batch.batch import Batch as Batch
    from loratools.operations.apply import apply as apply
    from loratools.operations.catalogue import supported_architectures as supported_architectures
    from loratools.operations.catalogue import supported_formats as supported_formats
    from loratools.operations.combine import combine as combine
    from loratools.operations.compare import compare as compare
    from loratools.operations.convert import convert as convert
    from loratools.operations.demo import demo as demo
    from loratools.operations.extract import extract as extract
    from loratools.operations.hash import hash_files as hash  # noqa: A004, F401 — `loratools.hash`
    from loratools.operations.inspect import inspect as inspect
    from loratools.operations.lora import open_lora as open  # noqa: A004, F401 — `loratools.open`, as in any file library
    from loratools.operations.merge import merge as merge
    from loratools.operations.metadata import get_metadata as get_metadata
    from loratools.operations.metadata import read_metadata as read_metadata
    from loratools.operations.metadata import remove_metadata as remove_metadata
    from loratools.operations.metadata import set_metadata as set_metadata
    from loratools.operations.metadata import strip_metadata as strip_metadata
    from loratools.operations.pull import pull as pull
    from loratools.operations.push import push as push
    from loratools.operations.rebuild import rebuild as rebuild
    from loratools.operations.recipe import recipe_of as recipe_of
    from loratools.operations.recipe import run_recipe as run_recipe
    from loratools.operations.resize import resize as resize
    from loratools.operations.validate import validate as validate
    from loratools.pipelines.synthetic import make_pipeline as make_pipeline

_VERBS = {
    "Batch": ("loratools.batch.batch", "Batch"),
    "apply": ("loratools.operations.apply", "apply"),
    "combine": ("loratools.operations.combine", "combine"),
    "compare": ("loratools.operations.compare", "compare"),
    "convert": ("loratools.operations.convert", "convert"),
    "demo": ("loratools.operations.demo", "demo"),
    "extract": ("loratools.operations.extract", "extract"),
    "hash": ("loratools.operations.hash", "hash_files"),
    "inspect": ("loratools.operations.inspect", "inspect"),
    "make_pipeline": ("loratools.pipelines.synthetic", "make_pipeline"),
    "merge": ("loratools.operations.merge", "merge"),
    **{
        name: ("loratools.operations.metadata", name)
        for name in ("get_metadata", "read_metadata", "remove_metadata", "set_metadata", "strip_metadata")
    },
    "pull": ("loratools.operations.pull", "pull"),
    "push": ("loratools.operations.push", "push"),
    "rebuild": ("loratools.operations.rebuild", "rebuild"),
    "recipe_of": ("loratools.operations.recipe", "recipe_of"),
    "run_recipe": ("loratools.operations.recipe", "run_recipe"),
    "resize": ("loratools.operations.resize", "resize"),
    "validate": ("loratools.operations.validate", "validate"),
    "supported_architectures": ("loratools.operations.catalogue", "supported_architectures"),
    "supported_formats": ("loratools.operations.catalogue", "supported_formats"),
    "open": ("loratools.operations.lora", "open_lora"),
}
__all__ = ["__version__", *_VERBS]  # noqa: PLE0604 — the names are strings of the table above


def __getattr__(name: str) -> Any:
    """Import a verb when it is first asked for."""
    if name not in _VERBS:
        raise AttributeError(f"module 'loratools' has no attribute {name!r}")
    module, attribute = _VERBS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
