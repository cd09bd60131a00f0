"""Group a file's tensors by the stem of their keys: one group a layer, one tensor a role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from loratools.adapters.factors import transposed
from loratools.adapters.kind import kind_of
from loratools.errors import IncompleteAdapter
from loratools.formats.beside import companion, replaced_norm
from loratools.formats.detect import Stem
from loratools.formats.format import NUMBERED, WHOLE
from loratools.formats.opening import Part
from loratools.formats.suffixes import Cut, Suffix, cut
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import TensorSource


class Found(NamedTuple):
    """One tensor of a group, with the key it was found under and how that was cut."""

    key: str
    tensor: LazyTensor
    cut: Cut

    @property
    def factor(self) -> LazyTensor:
        """The tensor as its role has it, whichever way the file stores it."""
        return transposed(self.tensor) if self.cut.row.turned else self.tensor


class Group(NamedTuple):
    """The tensors of one stem, by role as their suffixes say it."""

    stem: Stem
    file: str
    found: Mapping[str, Found]

    @property
    def kind(self) -> str:
        """The one kind that the suffixes speak for; raises IncompleteAdapter where there is none or more than one."""
        kinds = {item.cut.row.kind for item in self.found.values() if item.cut.row.kind}
        if (
            len(kinds) == 2
            and kinds <= {"lora", "loha", "lokr", "full"}
            and "full" in kinds
            and "diff" not in self.found
        ):
            kinds.discard("full")  # a bias difference beside factors that make the weight's
        if kinds == {"oft"} and "blocks" in self.found and len(self.found["blocks"].tensor.shape) == 4:
            kinds = {"boft"}
        if len(kinds) != 1:
            what = "factors of several kinds" if kinds else "no factors"
            raise IncompleteAdapter(
                f"{what} on one layer",
                path=self.file,
                key=self.stem[1],
                found=sorted(item.key for item in self.found.values()),
            )
        return kinds.pop()

    @property
    def factors(self) -> dict[str, LazyTensor]:
        """The factors by role: alpha left out, DoRA's magnitude made one-dimensional on the axis its shape tells."""
        for item in self.found.values():
            if item.cut.row.turned and len(item.tensor.shape) != 2:
                why = f"a factor of shape {list(item.tensor.shape)} where a matrix was expected: stacked experts?"
                raise IncompleteAdapter(why, path=self.file, key=item.key)
        factors = {role: item.factor for role, item in self.found.items() if role not in ("alpha", "dora_scale")}
        if "magnitude" in factors:
            factors["magnitude"] = factors["magnitude"].reshape(factors["magnitude"].numel)
        scale = self.found.get("dora_scale")
        if scale:
            weight = kind_of(self.kind).weight_shape(factors) or (None,)
            role = _magnitude(scale.tensor.shape, weight)
            if role is None:
                raise IncompleteAdapter(
                    f"a DoRA scale of shape {list(scale.tensor.shape)} fits no axis of a weight {list(weight)}",
                    path=self.file,
                    key=scale.key,
                )
            factors[role] = scale.tensor.reshape(scale.tensor.numel)
        return factors


def _magnitude(shape: tuple[int, ...], weight: Sequence[int | None]) -> str | None:
    """The axis of a `dora_scale`: [out, 1, …] (or flat [out]) is the output's, [1, in, …] the input's."""
    out, inner = weight[0], weight[1] if len(weight) > 1 else None
    if shape and prod(shape) == shape[0] and out in (shape[0], None):
        return "magnitude"
    if len(shape) > 1 and shape[0] == 1 and prod(shape) == shape[1] and inner in (shape[1], None):
        return "input_magnitude"
    return None


def canonical_roles(role: str) -> tuple[str, ...]:
    """The roles that a suffix can become: a DoRA scale is a magnitude on the axis that its shape tells."""
    return ("magnitude", "input_magnitude") if role == "dora_scale" else (role,)


def collect(parts: Sequence[Part]) -> tuple[dict[Stem, Group], list[tuple[Part, str]]]:
    """(groups by stem, keys whose suffix no table knows); raises IncompleteAdapter on a role that stands twice."""
    found: dict[Stem, dict[str, Found]] = {}
    files: dict[Stem, str] = {}
    rest: list[tuple[Part, str]] = []
    for part in parts:
        numbered = _numbered(part.source)
        for key in part.source:
            component = part.component
            if key in numbered:
                component, row, path = numbered[key]
                piece: Cut | None = Cut(path, row.text, row)
            else:
                piece = cut(key)
            if piece is None:
                rest.append((part, key))
                continue
            stem = (component, piece.stem)
            roles = found.setdefault(stem, {})
            files[stem] = part.source.name
            role = piece.row.role
            if role in roles:
                other = roles[role]
                reason = "two adapters in one file" if other.cut.adapter != piece.adapter else "one factor twice"
                raise IncompleteAdapter(f"{reason}: {other.key} and {key}", path=part.source.name, key=key)
            roles[role] = Found(key, part.source[key], piece)
    left: list[tuple[Part, str]] = []
    for part, key in rest:
        piece = _beside(part, key, found)
        if piece is None:
            left.append((part, key))
            continue
        stem = (part.component, piece.stem)
        files[stem] = part.source.name
        found.setdefault(stem, {})[piece.row.role] = Found(key, part.source[key], piece)
    return {stem: Group(stem, files[stem], roles) for stem, roles in found.items()}, left


def _numbered(source: TensorSource) -> dict[str, tuple[str, Suffix, str]]:
    """key → (component, row, path) of the layers that a file numbers: in keys without a dot, or as `weights.0.…`."""
    if NUMBERED not in source and all("." in key for key in source):
        return {}
    from loratools.formats.positional import placed  # the walks through the models, for the few such files

    return placed(source)


def _beside(part: Part, key: str, found: Mapping[Stem, dict[str, Found]]) -> Cut | None:
    """What a key says only beside others, cut; None where it says nothing more."""
    roles = found.get((part.component, key.rpartition(".")[0]))
    piece = companion(key, [item.cut for item in roles.values()]) if roles else None
    if piece is None and found and not key.startswith(WHOLE):
        piece = replaced_norm(key)
    return piece
