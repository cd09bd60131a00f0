"""extract: an adapter from a model and its fine-tune, layer by layer, with the error of every layer measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from loratools.architectures.architecture import Architecture
from loratools.architectures.llm_namings import LanguageNaming
from loratools.architectures.naming import Naming
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.bases.companions import companion
from loratools.bases.kinship import require_shared
from loratools.bases.language import names_of
from loratools.bases.pairing import Pair, pair
from loratools.bases.ties import Tie, tie_beside
from loratools.bases.weights import Base, open_base
from loratools.errors import ArchitectureMismatch, NotRepresentable, UsageError
from loratools.formats.format import Format, Options
from loratools.formats.opening import Opened, Reference
from loratools.formats.registry import format_of
from loratools.model import Target
from loratools.operations.extraction.pending import PendingExtraction
from loratools.operations.extraction.wishes import require_matches, wishes
from loratools.operations.references import open_reference
from loratools.tensors.aliased import Aliased

KOHYA_FIRST = ("sd1", "sd2", "sdxl")
"""The architectures whose users expect kohya's keys."""

DEVICES = ("cpu", "cuda")


def extract(
    base: Reference,
    tuned: Reference,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    size: int | None = None,
    patterns: Sequence[tuple[str, int]] = (),
    full: Sequence[str] = (),
    dora: bool = False,
    to: str | None = None,
    dtype: str | None = None,
    arch: str | None = None,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
    force: bool = False,
    allow_nonfinite: bool = False,
    allow_lossy: bool = False,
    unsafe_pickle: bool = False,
) -> PendingExtraction:
    """Plan the extraction of an adapter from two models, in any two containers and namings; no weight is read yet.

    Each layer is cut at `rank` (`conv_rank` for kernels larger than 1×1), at a share of its `energy` (‖Δ‖²), at a
    relative Frobenius `error` (0.05 where nothing is said), or where the bytes of a file of `size` hold the most of all
    layers together. `patterns` are (component.path with wildcards, rank); `full` names what goes along as a difference:
    norms, biases, embeddings. With `dora` a layer's magnitudes are its row norms, and the factors hold its directions.

    `to` is a format (kohya for SD1, SD2 and SDXL, peft for language models, else diffusers), `dtype` a safetensors name
    (F16, or BF16 for a BF16 base). Raises UsageError, WrongRole, ArchitectureMismatch, UnrelatedModels (unless
    `force`), NotRepresentable, and what opening raises.
    """
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}", hint=f"one of {', '.join(DEVICES)}")
    opened = tuple(open_reference(reference, unsafe_pickle=unsafe_pickle) for reference in (base, tuned))
    ours, theirs, tied, heads = _models(*opened)
    candidates = _shared(ours, theirs, arch)
    table = next((known for known in ARCHITECTURES if known.id in candidates[:1]), None)
    form = format_of(to) if to else _default(candidates)
    spelt = names_of(native for _, native in ours.natives(None)) if table is None else None
    grouping = _grouping(table, form, candidates, spelt)
    models = replace(pair(ours, theirs, table, candidates, grouping), tied=tied, names=spelt)
    asked = wishes(
        rank=rank,
        conv_rank=conv_rank,
        energy=energy,
        error=error,
        size=size,
        patterns=patterns,
        full=full,
        dora=dora,
        dtype=dtype or _dtype(models),
        seed=seed,
    )
    names = (ours.name, theirs.name)
    notes = [*require_shared(models, names, force=force), *heads]
    if len(candidates) > 1 and table is not None:
        notes.insert(0, f"the models may be {' or '.join(candidates)}: taken as {table.id} (--arch says otherwise)")
    if any(_has_vae(item) for item in opened):
        notes.append("the VAE is not compared: no adapter holds a change of it")
    require_matches(asked, models.twins)
    return PendingExtraction(
        names,
        models,
        asked,
        form,
        {
            "to": form.id,
            "arch": arch,
            "device": None if device == "cpu" else device,
            "force": force,
            "allow_nonfinite": allow_nonfinite,
            "allow_lossy": allow_lossy,
            **asked.to_dict(),
        },
        tuple(notes),
        threads,
        device,
        force,
        allow_nonfinite,
        allow_lossy,
        tuple(dict.fromkeys(file for side in (ours, theirs) for _, source in side.parts for file in source.files)),
        tuple(Path(item.name) for item in opened if Path(item.name).is_dir()),
    )


def _models(base: Opened, tuned: Opened) -> tuple[Base, Base, dict[str, str], list[str]]:
    """Both models, heads that both tie to an embedding, and a line about one that only one of them ties: there the
    embedding is taken for the head that is not stored.
    """
    models = (base, tuned)
    ties = [_tie(item) for item in models]
    sources = [[(part.component, part.source) for part in item.parts] for item in models]
    tied: dict[str, str] = {}
    lines: list[str] = []
    if ties[0] and ties[1] and (ties[0].head, ties[0].embedding) == (ties[1].head, ties[1].embedding):
        tied = {ties[0].head: ties[0].embedding}
    for at, other in ((0, 1), (1, 0)):
        tie = ties[at]
        if tie is None or tie.stored or ties[other] is not None:
            continue
        head = f"{tie.head}.weight"
        if any(head in source for _, source in sources[other]):
            sources[at] = [(name, Aliased(source, head, f"{tie.embedding}.weight")) for name, source in sources[at]]
            whose = "base" if at == 0 else "tuned"
            lines.append(
                f"the {whose} model ties {tie.head} to {tie.embedding}, the other has a head of its own: both are "
                f"compared{'; a merge into the base needs --untie' if at == 0 else ''}"
            )
    ours, theirs = (open_base(item.name, parts) for item, parts in zip(models, sources, strict=True))
    return ours, theirs, tied, lines


def _tie(opened: Opened) -> Tie | None:
    """How a model's folder ties its head; None for files, and for pipelines."""
    folder = Path(opened.name)
    return tie_beside(folder, opened.parts[0].source) if len(opened.parts) == 1 and folder.is_dir() else None


def _has_vae(opened: Opened) -> bool:
    return any(part.component == "vae" or any(companion(key) == "vae" for key in part.source) for part in opened.parts)


def _shared(base: Base, tuned: Base, arch: str | None) -> tuple[str, ...]:
    """The architectures that both may be, likeliest first; none for models that no table knows."""
    both = tuple(name for name in base.candidates if name in tuned.candidates)
    if not both and (base.candidates or tuned.candidates):
        told = [" or ".join(side.candidates[:4]) or "unknown" for side in (base, tuned)]
        raise ArchitectureMismatch(
            f"the base model is {told[0]}, the tuned one {told[1]}",
            path=tuned.name,
            hint="give the model that it was tuned from",
            expected=list(base.candidates),
            found=list(tuned.candidates),
        )
    if arch is None:
        return both
    wanted = architecture(arch).id
    if both and wanted not in both:
        raise ArchitectureMismatch(f"the models are {' or '.join(both)}, not {wanted}", path=tuned.name)
    return (wanted,)


def _default(candidates: Sequence[str]) -> Format:
    """The format that users of an architecture expect."""
    if candidates and candidates[0] in KOHYA_FIRST:
        return format_of("kohya")
    known = {table.id for table in ARCHITECTURES}
    return format_of("diffusers" if candidates and candidates[0] in known else "peft")


def _grouping(
    table: Architecture | None, form: Format, candidates: Sequence[str], names: LanguageNaming | None
) -> Callable[[str, str], Target | None]:
    """Which layers a format writes as one, so that they are decomposed as one: a fused qkv has one rank, not three.

    `names` is the naming of a language model. The answer raises NotRepresentable for a component without names in the
    format.
    """

    @cache
    def naming(component: str) -> Naming | LanguageNaming | None:
        known = table.by_name[component] if table else None
        spelling = form.spell(table, known, Options())
        if spelling is None:
            raise NotRepresentable(
                f"{form.id} has no names for {component} of this model ({', '.join(candidates[:3]) or 'unknown'})",
                hint="--to peft keeps the model's own names",
            )
        return known.naming(spelling.naming) if known else names

    def target_of(component: str, path: str) -> Target | None:
        spelt = naming(component)
        placement = spelt.at_canonical(path) if spelt else None
        return Target(component, placement.paths, placement.ratio) if placement else None

    return target_of


def _dtype(models: Pair) -> str:
    """BF16 where most of the base's layers are, else F16."""
    counts = Counter(twin.base.dtype for twin in models.twins if twin.sort == "layer")
    return "BF16" if counts and counts.most_common(1)[0][0] == "BF16" else "F16"
