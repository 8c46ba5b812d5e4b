"""Time the parts of a training step, sampling and scoring on this machine.

    python benchmarks/bench.py [--sizes tiny cifar10] [--images N] [--repeats N]
                               [--parts step gan sampling memory scores passes]
                               [--output FILE] [--docs]

Variants are interleaved on the same inputs in one process, so their ratios are meaningful even on
a busy machine. CPU time is reported along with wall time, because other programs affect it less.
``--docs`` writes the tables to docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Read when torch is loaded: threads that spin while they wait would slow whatever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import layouts
import limits
import scoring
import sizes
import stopwatch
import tangents
import torch
from parts import BF16, COMPILED, COMPILING, LEVERS, SAVING, WAYS, gan, sampling, steps
from rows import Table, fill

from ctm_core.runtime import devices
from ctm_core.runtime.files import write_json
from ctm_core.runtime.runs import environment

#: ``imagenet64`` is for true_size.py and gpu.py.
SIZES = ("cifar10", "tiny")
#: A step again, beside those with one key changed.
ONE_KEY = "step, one key"
PARTS = ("step", "gan", "sampling", "memory", "scores", "passes")

# -- memory --------------------------------------------------------------------------------------


def memory(table: Table, size: str) -> None:
    """Peak resident memory of a process that does two steps, and of one that only builds."""
    for way in WAYS | SAVING:
        found = {}
        for count in (0, 2):
            call = [sys.executable, __file__, "--memory-of", size, way, str(count)]
            text = subprocess.run(call, check=True, capture_output=True, text=True).stdout
            found[count] = json.loads(text.splitlines()[-1])
        row = {"size": size, "part": "memory", "way": way, "gigabytes": found[2]}
        first = next((r for r in table.rows if r["part"] == "memory" and r["size"] == size), None)
        if first is not None:
            row["share"] = found[2] / first["gigabytes"]
        table.put(row | {"networks_gigabytes": found[0]})


def memory_of(size: str, way: str, count: int) -> None:
    """Print the peak of this process in GB."""
    trainer = sizes.trainer(size, **(WAYS | SAVING)[way])
    for _ in range(count):
        trainer._generator_step()
    print(json.dumps(stopwatch.peak()))


# -- output --------------------------------------------------------------------------------------


def kind() -> str:
    """Which table of docs/performance.md: bf16 is another thing on each kind of processor."""
    units = devices.bf16_units()
    return {"amx_bf16": "AMX", None: "no AMX"}.get(units, str(units))


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/performance.md."""
    hardware = result["hardware"]
    text = [
        f"{hardware['device']}, {hardware['threads']} threads, torch {hardware['torch']}; "
        f"medians of {result['repeats']}.",
        "",
        "| size | what | variant | s | CPU-s | speed-up | by CPU time |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        if "seconds" not in row or "of_limit" in row:
            continue
        ratios = [f"{row[key]:.2f} ×" if key in row else "" for key in ("faster", "faster_cpu")]
        text.append(
            f"| {row['size']} | {row['part']} | {row['way']} | {row['seconds']:.3g} | "
            f"{row['cpu_seconds']:.3g} | {ratios[0]} | {ratios[1]} |"
        )
    peaks = [row for row in result["rows"] if "gigabytes" in row]
    if peaks:
        text += [
            "",
            "| size | variant | peak memory, GB | before the first step | vs plain |",
        ]
        text += ["|---|---|--:|--:|--:|"]
        for row in peaks:
            share = f"{row['share']:.2f}" if "share" in row else ""
            text.append(
                f"| {row['size']} | {row['way']} | {row['gigabytes']:.2f} | "
                f"{row['networks_gigabytes']:.2f} | {share} |"
            )
    text += limits.markdown(result["rows"])
    text += scoring.markdown(result["rows"])
    timed = [row for row in result["rows"] if "components" in row and row["part"] == "step"]
    for size in dict.fromkeys(row["size"] for row in timed):
        columns = [row for row in timed if row["size"] == size]
        text += ["", f"CPU seconds of one step by component, {size}:", ""]
        text += ["| component | " + " | ".join(row["way"] for row in columns) + " |"]
        text += ["|---|" + "--:|" * len(columns)]
        for name in stopwatch.COMPONENTS:
            cells = [row["components"][name] for row in columns]
            if any(cells):
                text.append(f"| {name} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")
    return "\n".join(text)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    known = (*PARTS, "levers", "compile", "layouts", "limits", "tangents")
    parser.add_argument("--parts", nargs="+", choices=known, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--images",
        type=int,
        default=scoring.IMAGES,
        help="images to score in the passes (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"))
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md")
    parser.add_argument("--add", action="store_true", help="keep the other rows of the output")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        size, way, count = arguments.memory_of
        memory_of(size, way, int(count))
        return
    stopwatch.install()
    table, repeats, parts = Table(), arguments.repeats, arguments.parts
    for size in arguments.sizes:
        many = repeats if size == "cifar10" else 4 * repeats
        if "step" in parts:
            steps(table, size, WAYS, many)
        if "levers" in parts:
            steps(table, size, {"bf16": BF16} | LEVERS, many, ONE_KEY)
        if "compile" in parts:
            ways = {"bf16": BF16} | COMPILED
            steps(table, size, ways, repeats, "step, compiled", warm=COMPILING)
        if "gan" in parts and size == "cifar10":
            gan(table, size, repeats)
        if "sampling" in parts:
            sampling(table, size, repeats)
        if "limits" in parts:
            limits.limits(table, size)
        if "memory" in parts:
            memory(table, size)
    if "layouts" in parts:
        layouts.layouts(table, repeats)
    if "tangents" in parts:
        tangents.tangents(table, repeats)
    if "scores" in parts:
        scoring.distances(table, repeats)
    if "passes" in parts:
        scoring.passes(table, arguments.images, arguments.threads)
    result = {"hardware": environment(), "repeats": repeats, "rows": table.rows}
    if arguments.add and arguments.output.exists():
        before = json.loads(arguments.output.read_text(encoding="utf-8"))["rows"]
        new = {(row["size"], row["part"], row["way"]) for row in table.rows}
        kept = [row for row in before if (row["size"], row["part"], row["way"]) not in new]
        result["rows"] = sorted(kept + table.rows, key=lambda row: row["size"])
    write_json(arguments.output, result)
    print(f"{arguments.output} written")
    if arguments.docs:
        fill(kind(), markdown(result))


if __name__ == "__main__":
    main()
