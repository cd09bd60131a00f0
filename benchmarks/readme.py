"""Put the newest results of benchmarks/results into README.md, between its marks: `python benchmarks/readme.py`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

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
        for title, rows in newest(what)["tables"].items():
            lines.append(f"| **{title}** | | | |")
            lines += [
                f"| {name} | {row['wall_median']:.2f} | {row['cpu_median']:.2f} | {row['peak_mb']:.0f} |"
                for name, row in rows.items()
            ]
    return "\n".join(lines) + "\n"


def loading() -> str:
    """How many sorts of files diffusers loads right for each pipeline, as they are and converted; and PEFT then."""
    cells = json.loads((ROOT / "benchmarks" / "results" / "loading-matrix.json").read_text(encoding="utf-8"))["cells"]
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    totals = Counter[str]()
    for name, sorts in cells.items():
        counts = sum((_counted(cell) for cell in sorts.values() if "after" in cell), Counter[str]())
        totals += counts
        lines.append(_row(name, counts))
    return "\n".join([*lines, _row("**all**", totals)]) + "\n"


HEADS = (
    "pipeline", "sorts of files", "right as they are", "**wrong or nothing**, and no exception", "refused",
    "right after `--to diffusers`", "of them `--to-kind lora`", "merged instead", "right in PEFT after `--to peft`",
)  # fmt: skip


def _counted(cell: dict[str, dict[str, Any]]) -> Counter[str]:
    """One cell of the matrix, counted under the columns that it belongs to."""
    before, after, peft = cell["before"]["outcome"], cell["after"], cell.get("peft", {})
    found = ["all", {"ok": "right", "refused": "refused"}.get(before, "silent")]
    if after["outcome"] == "ok":
        found.append("merged" if after.get("merged") else "converted")
        found += ["plain"] if after.get("to_kind") else []
    return Counter([*found, *(["peft"] if peft.get("outcome") == "ok" else [])])


def _row(name: str, counts: Counter[str]) -> str:
    columns = ("all", "right", "silent", "refused", "converted", "plain", "merged", "peft")
    return f"| {name} | {' | '.join(str(counts[column]) for column in columns)} |"


TABLES = {"figures": figures, "loading": loading}


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(MARKS.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
