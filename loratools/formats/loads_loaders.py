"""A loader of a diffusers pipeline: the branches of its code, and what becomes of the layers in the one it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loratools.formats.loading import LOADS, Layer, Subject, Verdict, fails, refuses
from loratools.formats.loads_rows import Row, by_rows

KINDS = ("boft", "full", "glora", "ia3", "loha", "lokr", "norm", "oft")

NO_LORA = refuses("a key has no `lora` in it")
NO_FACTORS = refuses("its factors are named in a way that it does not know")
NO_MODULE = refuses("its names are none of the transformer's modules")
NOT_A_MODULE = fails("left out: its name is none of the transformer's modules", "run")
OF_ANOTHER = fails("scaled wrongly: the alpha of a layer whose name ends its own is taken for it", "run")
OTHER_START = refuses("some keys begin otherwise than the others")
BLOCK_PARTLY = refuses("it asks for every layer of a block, and here some are missing")
BESIDE_BLOCKS = refuses("it knows the layers of the blocks alone, and here are others")
UNNAMED = fails("left out with a warning: the keys do not begin with the name of a component", "run")
NAMED = fails("left out: the keys name an adapter", "run")
DORA_SCALE = fails("wrong: dora_scale is dropped, the rest applied as a plain LoRA", "run")
ALPHA_FREE = fails("scaled wrongly: alpha stands where it does not look", "run")
NO_OUT_PROJ = fails("left out: q, k and v of a text encoder are read only where an out_proj is adapted too", "read")
OTHER_KIND = fails("left out with a warning: not a LoRA of two factors", "run")


class Way(NamedTuple):
    """One branch, of files in which a key begins with one of `starts` and a key holds one of `holds` (where there are).

    `alpha` says that it reads alpha tensors, `strict` that it refuses a file with keys that have no `lora` in them,
    `every` that it refuses one of which not every key begins so, `patterns` that a layer's own alpha also goes to
    layers whose names end with its name. `blocks` are the layers that it asks for, by the beginning of their block: all
    of them in each block that there is, and no others anywhere.
    """

    rows: tuple[Row, ...]
    starts: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    otherwise: Verdict = UNNAMED
    alpha: bool = False
    strict: bool = True
    every: bool = False
    patterns: bool = False
    blocks: Mapping[str, Sequence[str]] = {}

    def takes(self, keys: Sequence[str]) -> bool:
        """Whether the loader goes this way with a file of those keys."""
        return (not self.starts or any(key.startswith(self.starts) for key in keys)) and (
            not self.holds or any(part in key for key in keys for part in self.holds)
        )


class Loader(NamedTuple):
    """A loader: whose it is, the components that it fills, and its ways, of which a file takes the first that it fits.

    The last way, which all loaders have, is that of files which diffusers wrote: PLAIN.
    """

    mixin: str
    architectures: tuple[str, ...]
    components: tuple[str, ...] = ("transformer",)
    ways: tuple[Way, ...] = ()


IN_GROUPS = refuses("PEFT takes for a convolution in groups no rank that they do not divide")
PLAIN_ROWS = (
    Row(IN_GROUPS, ("sana", "sana-video"), styles=("component",), match=r"\.conv_depth$"),
    # Norms that control adapters bring along whole: their weights are of no family of factors.
    Row(LOADS, ("flux1",), styles=("component",), families=("",), kinds=("norm",), match=r"\.norm_(added_)?[qk]$"),
    Row(OTHER_KIND, styles=("component",), kinds=KINDS),
    Row(NO_FACTORS, styles=("component",), families=("kohya",)),
    Row(NOT_A_MODULE, styles=("component",), native=True, renamed=True),
    Row(NAMED, styles=("component",), marks=("named",)),
    Row(DORA_SCALE, styles=("component",), marks=(".dora_scale",)),
    Row(ALPHA_FREE, styles=("component",), families=("peft",), marks=("alpha elsewhere",), metadata=False),
    Row(LOADS, styles=("component",), families=("peft", "diffusers-old", "attn-procs")),
)
PLAIN = Way(PLAIN_ROWS)


def by_loader(loader: Loader, subject: Subject) -> list[Verdict]:
    """A verdict for every layer of a file."""
    keys = [key for key in subject.keys if "dora_scale" not in key]
    way = next((way for way in loader.ways if way.takes(keys)), PLAIN)
    whole = _refused(way, keys, subject)
    if whole is not None:
        return [whole] * len(subject.layers)
    found = by_rows(way.rows, subject, way.otherwise)
    whole = next((verdict for verdict in found if verdict.whole), None)
    if whole is not None:
        return [whole] * len(subject.layers)
    if NOT_A_MODULE in found and LOADS not in found:
        return [NO_MODULE] * len(subject.layers)
    if way.patterns:
        found = _by_patterns(subject, found)
    old = {layer.component for layer in subject.layers if layer.path.endswith("out_proj")}
    return [
        NO_OUT_PROJ if verdict is LOADS and _lost_in_text(layer, old) else verdict
        for layer, verdict in zip(subject.layers, found, strict=True)
    ]


def _refused(way: Way, keys: Sequence[str], subject: Subject) -> Verdict | None:
    """Why a loader refuses a file as a whole, by its keys and blocks, or None."""
    if way.every and not all(key.startswith(way.starts) for key in keys):
        return OTHER_START
    if way.strict and not all("lora" in key or (way.alpha and key.endswith(".alpha")) for key in keys):
        return NO_LORA
    return _incomplete(way.blocks, subject) if way.blocks else None


def _incomplete(blocks: Mapping[str, Sequence[str]], subject: Subject) -> Verdict | None:
    """Why a loader that asks for whole blocks refuses a file."""
    held: dict[str, set[str]] = {}
    for layer in subject.layers:
        for path in layer.adapter.target.paths:
            start = next((start for start in blocks if path.startswith(f"{start}.")), None)
            number, _, rest = path.removeprefix(f"{start}.").partition(".")
            if start is None or rest not in blocks[start]:
                return BESIDE_BLOCKS
            held.setdefault(f"{start}.{number}", set()).add(rest)
    whole = {f"{start}.": set(parts) for start, parts in blocks.items()}
    complete = all(parts == whole[f"{block.rpartition('.')[0]}."] for block, parts in held.items())
    return None if complete else BLOCK_PARTLY


def _by_patterns(subject: Subject, found: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts where alphas other than the commonest are handed out by patterns that fit the ends of names."""
    alphas = [layer.adapter.alpha.value for layer in subject.layers]
    common = Counter(alphas).most_common(1)[0][0]
    own = {layer.path: alpha for layer, alpha in zip(subject.layers, alphas, strict=True) if alpha != common}
    return [
        OF_ANOTHER
        if verdict is LOADS
        and any(layer.path.endswith(f".{path}") and other != alpha for path, other in own.items() if "." not in path)
        else verdict
        for layer, alpha, verdict in zip(subject.layers, alphas, found, strict=True)
    ]


def _lost_in_text(layer: Layer, old: set[str]) -> bool:
    """Whether a text encoder's layer is lost on the way that kohya's names take: through those of old attention."""
    return (
        layer.sort.family == "kohya"
        and layer.component.startswith("text_encoder")
        and layer.component not in old
        and layer.path.endswith(("q_proj", "k_proj", "v_proj"))
    )
