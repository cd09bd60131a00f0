"""Put the newest figures of benchmarks/results into README.md, between its marks: `python benchmarks/readme.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKS = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


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


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(MARKS.sub(lambda found: found[1] + figures() + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
