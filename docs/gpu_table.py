"""Write the GPU tables of docs/performance.md from what benchmarks/gpu.py has measured.

    python docs/gpu_table.py [results/gpu.jsonl …]

Each file is kept as benchmarks/gpu-<card>.jsonl. The page has one section for each file there, and
says that nothing has been measured yet if there is none. The same files give the same text.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from rows import fill  # noqa: E402

NOTHING = (
    "Not yet measured: no machine with a GPU has run it. A test rehearses every part of it on the "
    "CPU (`--device cpu --tiny`)."
)
#: Parts that are tables: the columns, by the key of a row, the heading and the format.
Columns = tuple[tuple[str, str, str], ...]
STEP: Columns = (
    ("size", "size", "{}"),
    ("kind", "step", "{}"),
    ("way", "variant", "{}"),
    ("batch", "micro-batch", "{}"),
    ("seconds", "s", "{:.3g}"),
    ("images_per_second", "images/s", "{:.3g}"),
    ("peak_memory_gb", "peak memory, GB", "{:.2f}"),
    ("share_of_peak", "share of peak", "{:.0%}"),
    ("peak", "of", "{}"),
)
RATE: Columns = (
    ("what", "what", "{}"),
    ("way", "variant", "{}"),
    ("seconds", "s", "{:.3g}"),
    ("images_per_second", "images/s", "{:.3g}"),
)
SCORE: Columns = (
    ("model", "model", "{}"),
    ("sampler", "sampler", "{}"),
    ("gamma", "γ", "{}"),
    ("nfe", "NFE", "{}"),
    ("metric", "metric", "{}"),
    ("value", "value", "{:.3g}"),
)
TABLES: dict[str, tuple[tuple[str, ...], Columns]] = {
    "Training steps": (("keys", "batches", "imagenet", "gan"), STEP),
    "Sampling and scoring": (("sampling", "scoring"), RATE),
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """One run's text; a part that was cut off or failed is named as such."""
    of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["part"], []).append(row)
    facts = next((row for row in of.get("machine", []) if "card" in row), {})
    words = [str(facts.get("card", "unknown card"))]
    words += [f"{key} {facts[key]}" for key in ("driver", "cuda", "torch") if facts.get(key)]
    lines = [f"{', '.join(words)}.", ""]
    for row in of.get("machine", []):
        if "teraflops" in row:
            lines.append(f"* Large {row['peak']} product: {row['teraflops']:.3g} TFLOP/s.")
        if "gigabytes_per_second" in row:
            lines.append(f"* Copy: {row['gigabytes_per_second']:.3g} GB/s.")
    for row in of.get("verify", []):
        if "precision" in row:
            verdict = "all within tolerance" if row["passed"] else "; ".join(row["failed"])
            lines.append(
                f"* `ctm verify`, {row['precision']}: {row['checks']} checks, {verdict}; the "
                f"worst error is {row['worst_of_tolerance']:.2g} of its tolerance."
            )
    for row in of.get("resume", []):
        if "same_bits" in row:
            same = "the same bytes" if row["same_bits"] else "other bytes"
            lines.append(f"* Killed after step {row['killed_after']} and resumed: {same}.")
    for row in of.get("processes", []):
        if "furthest" in row:
            lines.append(f"* Two processes on it: losses differ by at most {row['furthest']:.1e}.")
    for row in of.get("smoke", []):
        if "compared" in row:
            lines.append(
                f"* The smoke experiment beside the CPU's: {row['compared']} of {row['values']} "
                f"values compared, {row['equal']} equal, median relative difference "
                f"{row['median_difference']:.1e}, largest {row['largest_difference']:.1e}."
            )
    jobs = [row for row in of.get("hour", []) if "job" in row]
    for row in of.get("hour", []):
        if "scale" in row:
            spent = sum(job["seconds"] for job in jobs) / 60
            lines.append(
                f"* `cifar10-hour` at scale {row['scale']:.3g}, given {row['minutes']:g} minutes: "
                f"{len(jobs)} jobs in {spent:.1f}."
            )
    if scores := [row for row in of.get("hour", []) if "metric" in row]:
        lines += ["", "Its table:", "", *_table(scores, SCORE)]
    for title, (parts, columns) in TABLES.items():
        shown = [row for part in parts for row in of.get(part, []) if "seconds" in row]
        if shown:
            lines += ["", f"{title}:", "", *_table(shown, columns)]
    problems = [
        f"* {row['part']}{' ' + row['way'] if 'way' in row else ''}: "
        f"{row.get('failed') or row['outcome']}"
        for row in rows
        if (row["part"] != "verify" and row.get("failed")) or row.get("outcome", "done") != "done"
    ]
    if problems:
        lines += ["", "Not measured:", "", *problems]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], columns: Columns) -> list[str]:
    used = [column for column in columns if any(column[0] in row for row in rows)]
    lines = ["| " + " | ".join(heading for _, heading, _ in used) + " |"]
    lines.append("|" + "|".join("---" if form == "{}" else "--:" for *_, form in used) + "|")
    for row in rows:
        cells = [form.format(row[key]) if key in row else "" for key, _, form in used]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def kept() -> list[Path]:
    """The files of all cards."""
    return sorted((ROOT / "benchmarks").glob("gpu-*.jsonl"))


def text(files: list[Path]) -> str:
    """Every file, one after the other; of a part that was run again, the last run."""
    sections = []
    for file in (file for file in files if file.is_file()):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        last = {row["part"]: row["run"] for row in rows}
        sections.append(markdown([row for row in rows if row["run"] == last[row["part"]]]))
    return "\n\n".join(sections) or NOTHING


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="rows to keep under benchmarks/")
    for file in parser.parse_args().files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        card = next((row["card"] for row in rows if "card" in row), "unknown")
        name = re.sub("[^a-z0-9]+", "-", card.lower()).strip("-")
        shutil.copyfile(file, ROOT / f"benchmarks/gpu-{name}.jsonl")
    fill("GPU", text(kept()))


if __name__ == "__main__":
    main()
