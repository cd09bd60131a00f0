"""Every exception of loratools: what happened, where (file, key), what to do, and the exit code it ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

SCHEMA = "loratools.error/1"


class LoratoolsError(Exception):
    """The root of all our errors; `evidence` holds anything beyond path, key and hint that a program may want."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        message: str,
        *,
        path: object | None = None,
        key: str | None = None,
        hint: str | None = None,
        **evidence: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.key = key
        self.hint = hint
        self.evidence: Mapping[str, Any] = evidence

    def to_dict(self) -> dict[str, Any]:
        """The error document that `--json` prints."""
        return {
            "schema": SCHEMA,
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "path": self.path,
            "key": self.key,
            "hint": self.hint,
            **self.evidence,
        }


# 2: usage


class UsageError(LoratoolsError):
    """An option word, a reference or a combination of options that makes no sense."""

    code = "usage"
    exit_code = 2


class PathNotFound(UsageError):
    """A path that does not exist or holds nothing to read."""

    code = "path-not-found"


class OutputExists(UsageError):
    """The output is already there and `--overwrite` was not given."""

    code = "output-exists"


class OutputRefused(UsageError):
    """The output is an input, a link, a special or read-only file, or lies in the Hub cache."""

    code = "output-refused"


# 3: malformed, unsafe, unsupported, not representable


class MalformedFile(LoratoolsError):
    """The bytes are not what the file's name or header says."""

    code = "malformed-file"
    exit_code = 3


class UnsafeFile(MalformedFile):
    """A file that could run code, or name files outside its folder, and was not opened."""

    code = "unsafe-file"


class UnsupportedFile(LoratoolsError):
    """A well-formed file of a sort that this operation cannot take."""

    code = "unsupported"
    exit_code = 3


class UnreadableForm(UnsupportedFile):
    """An adapter in a form that is recognised and cannot be read, named by the evidence `form`."""


class UnknownKeys(LoratoolsError):
    """Tensors that no table knows; nothing is dropped in silence."""

    code = "unknown-key"
    exit_code = 3


class IncompleteAdapter(LoratoolsError):
    """An adapter with a factor missing, doubled, or of a shape that does not fit its others."""

    code = "incomplete-adapter"
    exit_code = 3


class NotRepresentable(LoratoolsError):
    """The target cannot hold this adapter exactly."""

    code = "not-representable"
    exit_code = 3


# 4: the inputs do not fit each other


class WrongRole(LoratoolsError):
    """A base model where an adapter is needed, or the reverse."""

    code = "wrong-role"
    exit_code = 4


class ArchitectureMismatch(LoratoolsError):
    """The file fits no architecture, another one than named, or too many to go on."""

    code = "architecture-mismatch"
    exit_code = 4


class UnrelatedModels(LoratoolsError):
    """Two models of one architecture of which neither was made from the other, or nothing changed between them."""

    code = "unrelated-models"
    exit_code = 4


class PartialMatch(LoratoolsError):
    """Modules of an adapter that the base model has no weight for: some, without `--allow-partial`, or all."""

    code = "partial-match"
    exit_code = 4


# 5: the machine


class ResourceError(LoratoolsError):
    """Memory, disk space, permission, or an input that changed while it was read."""

    code = "resource"
    exit_code = 5


# 6: out of reach


class Unavailable(LoratoolsError):
    """Something on the Hub that is missing, gated or out of reach, or a needed file that is not on this machine."""

    code = "unavailable"
    exit_code = 6


# 7: numbers


class NonFinite(LoratoolsError):
    """NaN, infinity or overflow where a number is needed."""

    code = "non-finite"
    exit_code = 7


# 70: ours


class InternalError(LoratoolsError):
    """A check on our own result failed; nothing was written. Please report it."""

    code = "internal"
    exit_code = 70


def closest(word: str, known: Iterable[object]) -> str | None:
    """The known word most like `word`, or None where none is much like it."""
    from difflib import get_close_matches

    matches = get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.5)
    return matches[0] if matches else None


def nearest(word: str, known: Iterable[object]) -> str | None:
    """The known word most like `word`, as a hint, or None."""
    found = closest(word, known)
    return None if found is None else f"did you mean {found!r}?"
