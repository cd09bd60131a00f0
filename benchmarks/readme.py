"""Put the newest results of benchmarks/results into README.md, between its marks: `python benchmarks/readme.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKS = re.compile(r"(<!-- (figures|loading) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def newest(what: str) -> dict[str, object]:
    """The last result of one benchmark."""
    path = max((ROOT / "benchmarks" / "results").glob(f"*-{what}.json"))
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return document


def figures() -> str:
    """A table: medians of wall and CPU seconds, peak memory, for every contestant."""
    lines = ["| | wall s | CPU s | peak MB |", "|---|---|---|---|"]
    for what in ("start-up", "rename"):
        for title, rows in newest(what)["tables"].items():  # type: ignore[attr-defined]
            lines.append(f"| **{title}** | | | |")
            lines += [
                f"| {name} | {row['wall_median']:.2f} | {row['cpu_median']:.2f} | {row['peak_mb']:.0f} |"
                for name, row in rows.items()
            ]
    return "\n".join(lines) + "\n"


def loading() -> str:
    """Which sorts of files diffusers loads right: as they are → converted, for each pipeline; equal rows joined."""
    cells = json.loads((ROOT / "benchmarks" / "results" / "loading-matrix.json").read_text(encoding="utf-8"))["cells"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for sort in dict.fromkeys(sort for found in cells.values() for sort in found):
        rows.setdefault(tuple(_both(found.get(sort, {})) for found in cells.values()), []).append(sort)
    lines = [f"| file | {' | '.join(cells)} |", "|---" * (len(cells) + 1) + "|"]
    lines += [f"| {_joined(sorts)} | {' | '.join(row)} |" for row, sorts in rows.items()]
    return "\n".join(lines) + "\n"


def _both(cell: dict[str, dict[str, str]]) -> str:
    words = {"wrong": "**wrong**", "nothing": "**nothing**"}
    told = [
        words.get(half["outcome"], half["outcome"]) + (" as LoRA" if half.get("to_kind") else "")
        for half in cell.values()
    ]
    return " → ".join(told)


def _joined(sorts: list[str]) -> str:
    """`kohya, one alpha; LyCORIS loha, lokr`: the kinds of LyCORIS together, after the others."""
    family = "LyCORIS "
    kinds = [sort.removeprefix(family) for sort in sorts if sort.startswith(family)]
    others = [sort for sort in sorts if not sort.startswith(family)]
    return "; ".join([*others, family + ", ".join(kinds)] if kinds else others)


TABLES = {"figures": figures, "loading": loading}


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(MARKS.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
