"""The weights that a model class has under a configuration: names and shapes, from a model without memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from loratools.errors import UnsupportedFile

LIBRARIES = ("diffusers", "transformers")


def expected_shapes(library: str, class_name: str, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """key → shape of every weight of a model of `library` (diffusers or transformers).

    Raises UnsupportedFile for a class that is no model of these libraries, and a configuration that it does not take.
    """
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    return _shapes(library, class_name, json.dumps(known, sort_keys=True))


@lru_cache(maxsize=16)
def _shapes(library: str, class_name: str, config: str) -> Mapping[str, tuple[int, ...]]:
    import torch
    from torch import nn

    from loratools.pipelines.quiet import quiet_libraries

    with quiet_libraries(), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = _model_class(library, class_name)
        known = json.loads(config)
        try:
            model = cls.from_config(known) if library == "diffusers" else cls(cls.config_class.from_dict(known))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UnsupportedFile(f"{class_name} does not take its configuration: {error}") from error
    assert isinstance(model, nn.Module)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _model_class(library: str, class_name: str) -> Any:
    """A class by the words of a `model_index.json`, which are data: only a model class of the two libraries will do."""
    import diffusers
    import transformers

    if library not in LIBRARIES:
        raise UnsupportedFile(f"{library}.{class_name} is no model of diffusers or transformers")
    home, root = (
        (diffusers, diffusers.ModelMixin) if library == "diffusers" else (transformers, transformers.PreTrainedModel)
    )
    cls = getattr(home, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, root)):
        raise UnsupportedFile(f"{library} has no model class {class_name}")
    return cls
