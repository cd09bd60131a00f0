"""Put the newest results of benchmarks/results into README.md, between its marks: `python benchmarks/readme.py`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKS = re.compile(r"(<!-- (figures|hub|loading) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


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


ADAPTERS = 100_000
WINDOW_MINUTES = 5
# The Hub's limits a window: without an account, with a free one, with PRO.
RESOLVER, API = (3_000, 5_000, 12_000), (500, 1_000, 2_500)
# What an adapter takes: of files, of the API. tests/hub/test_whole_hub.py counts them.
ASKED = (
    ("the list, by pages of 1,000", 0, 0.001),
    ("headers of single files (`batch inspect`)", 1, 0),
    ("headers of PEFT folders", 2, 0),
    ("whole single files (`batch convert`, any number of formats)", 1, 0),
    ("whole PEFT folders, for each format", 3, 1),
)


def hub() -> str:
    """What the Hub's limits allow at most, and what the work on local files took, for as many adapters."""
    lines = [
        "| asked of the Hub | for a file | of its API | no account | free | PRO |",
        "|---|---|---|---|---|---|",
        f"| limit in five minutes | {' / '.join(map(str, RESOLVER))} | {' / '.join(map(str, API))} | | | |",
    ]
    for what, files, calls in ASKED:
        windows = (max(files / most, calls / least) * ADAPTERS for most, least in zip(RESOLVER, API, strict=True))
        floors = (_duration(60 * WINDOW_MINUTES * count) for count in windows)
        lines.append(f"| {what} | {files:g} | {calls:g} | {' | '.join(floors)} |")
    results = ROOT / "benchmarks" / "results"
    headers, kills = (
        json.loads((results / f"many-{name}.json").read_text(encoding="utf-8"))[name] for name in ("headers", "kills")
    )
    rename: Any = newest("rename")["tables"]
    title = next(name for name in rename if "228 MB" in name)
    each = rename[title]["loratools convert"]["cpu_median"]
    pace, small = headers["files_per_second"], kills["files"] / kills["seconds_undisturbed"]
    work = (
        (
            f"headers inspected, {headers['files']:,} files",
            f"{pace:,.0f} a second, the driver in {headers['driver_peak_mb']:.0f} MB",
            _duration(ADAPTERS / pace),
        ),
        (
            f"adapters of 10 kB converted, written and proven, {kills['files']:,} files",
            f"{small:,.0f} a second",
            _duration(ADAPTERS / small),
        ),
        (
            "SDXL adapters of 228 MB converted, hashed and proven",
            f"{each:.2f} CPU s each",
            f"{ADAPTERS * each / 3600:,.0f} core-hours; 23 TB read, as much written",
        ),
    )
    lines += ["", "| work on local files, two cores | measured | 100,000 take |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in work]
    lines += [
        "",
        "| SIGKILL at random, while converting | files | drivers | workers | undisturbed | disturbed | the answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in (("kills", "processes"), ("kills-ray", "Ray, two actors")):
        held = json.loads((results / f"many-{name}.json").read_text(encoding="utf-8"))["kills"]
        same = "the same, nothing left behind" if _is_whole(held) else "not the same"
        lines.append(
            f"| {title} | {held['files']:,} | {held['driver_kills']} | {held['worker_kills']} | "
            f"{held['seconds_undisturbed']:.0f} s | {held['seconds_disturbed']:.0f} s | {same} |"
        )
    return "\n".join(lines) + "\n"


def _is_whole(found: dict[str, Any]) -> bool:
    return bool(found["same_answers_and_outputs"]) and not found["left_behind"]


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


TABLES = {"figures": figures, "hub": hub, "loading": loading}


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(MARKS.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
