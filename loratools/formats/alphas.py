"""Alpha from all its places: a tensor, a configuration, metadata, or nowhere; and what contradicts what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from loratools.errors import MalformedFile, NonFinite, UnsupportedFile
from loratools.formats.configs import Config, alpha_of, number, rank_of, scale_of
from loratools.model import Alpha, AlphaSource
from loratools.tensors.lazy import LazyTensor

# Free-form strings that some trainers write instead of tensors or a configuration; no other runtime reads them.
FREE_KEYS = ("lora_alpha", "network_alpha", "alpha")
# Files of these families multiply by alpha / rank with an alpha that they do not hold.
ABSENT: Mapping[str, Fraction] = {"stable-cascade": Fraction(1)}


class Settings(NamedTuple):
    """What a file says about the alphas of one component beside its tensors.

    `trained` are the alpha and the rank that the trainer noted for the layers of that rank.
    """

    config: Config | None = None
    source: AlphaSource = "absent"
    free: Fraction | None = None
    trained: tuple[Fraction, int] | None = None


def scalar(tensor: LazyTensor, *, path: object, key: str) -> Fraction:
    """The one finite number of an alpha tensor of shape [] or [1]; raises MalformedFile or NonFinite."""
    if tensor.shape not in ((), (1,)):
        raise MalformedFile(f"alpha must be one number, found shape {list(tensor.shape)}", path=path, key=key)
    if tensor.dtype == "BOOL":
        raise MalformedFile("alpha is true or false, and no number", path=path, key=key)
    try:
        value = tensor.item()
    except UnsupportedFile as error:
        raise MalformedFile(f"alpha is of dtype {tensor.dtype}, which holds no number", path=path, key=key) from error
    if not isinstance(value, Fraction):
        raise NonFinite(f"alpha is {value}", path=path, key=key, hint="the file was damaged in training or saving")
    return value


def free_alpha(metadata: Mapping[str, str], *, path: object) -> Fraction | None:
    """An alpha that stands only in free-form metadata."""
    for key in FREE_KEYS:
        if key in metadata:
            return number(metadata[key], path=path, key=key)
    return None


def trained_alpha(metadata: Mapping[str, str]) -> tuple[Fraction, int] | None:
    """The alpha and the rank that sd-scripts' family notes, where it notes no others for convolutions."""
    if "conv_alpha" in metadata.get("ss_network_args", ""):
        return None
    try:
        return Fraction(metadata.get("ss_network_alpha", "")), int(metadata.get("ss_network_dim", ""))
    except (ValueError, ZeroDivisionError):
        return None  # a note that is no number says nothing; the tensor does


def _unread(stored: LazyTensor, names: Sequence[str], rank: int | None, settings: Settings, *, path: object) -> Alpha:
    """The alpha of a tensor whose value is out of reach, as the configuration or the trainer's notes state it."""
    shape = (stored.dtype, stored.shape)
    if settings.config is not None:
        stabilized = bool(settings.config.get("use_rslora"))
        return Alpha(alpha_of(settings.config, names, path=path), settings.source, stabilized, shape)
    if settings.trained is not None and settings.trained[1] == rank:
        return Alpha(settings.trained[0], "metadata", False, shape)
    return Alpha(None, "tensor (not read)", False, shape)


def stated_rank(config: Config, names: Sequence[str]) -> dict[str, int]:
    """The r that a configuration states for one module, as a keyword, or nothing."""
    rank = rank_of(config, names)
    return {} if rank is None else {"r": rank}


def resolve(
    stored: LazyTensor | None,
    key: str | None,
    names: Sequence[str],
    rank: int | None,
    settings: Settings,
    *,
    path: object,
    is_scale: bool = False,
) -> tuple[Alpha, list[str]]:
    """The alpha of one module and what contradicts it. A tensor speaks before a configuration, that before metadata.

    `is_scale` says that the tensor holds alpha / rank.
    """
    warnings: list[str] = []
    config = settings.config
    if config is not None:
        stated = rank_of(config, names)
        if stated is not None and rank is not None and stated != rank:
            warnings.append(f"the {settings.source} says rank {stated}, the factors have {rank}")
    if stored is not None and not stored.is_within_reach:
        return _unread(stored, names, rank, settings, path=path), warnings
    if stored is not None and key is not None:
        value = scalar(stored, path=path, key=key)
        if is_scale:
            value *= rank or 1
        if not value:
            warnings.append("a stored alpha of 0 is read as no effect; sd-scripts' trainer reads it as alpha = rank")
        elif value.numerator < 0:
            warnings.append("a negative alpha inverts the adapter")
        if config is not None and alpha_of(config, names, path=path) != value:
            warnings.append(f"the alpha tensor contradicts the {settings.source}; the tensor is used")
        return Alpha(value, "tensor", False, (stored.dtype, stored.shape)), warnings
    scale = scale_of(config, path=path) if config is not None else None
    if scale is not None:
        return Alpha(scale * (rank or 1), settings.source), warnings
    if config is not None:
        stabilized = bool(config.get("use_rslora"))
        return Alpha(alpha_of(config, names, path=path), settings.source, stabilized), warnings
    if settings.free is not None:
        warnings.append("alpha stands only in free-form metadata, which most runtimes do not read")
        return Alpha(settings.free, "metadata"), warnings
    return Alpha(), warnings
