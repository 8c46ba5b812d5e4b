"""Seconds of a training step, with and without what `ctm` asks of its C library and threads.

    python benchmarks/process.py [--repeats N] [--steps N] [--threads N] [--docs]

`ctm teacher` trains for a few steps as it is, with freed memory returned to the system, with
threads that sleep as soon as they wait, and with one thread, in turns. ``--docs`` writes
docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rows import fill
from shortened import drawn

from ctm_core.config import read_yaml
from ctm_core.config.project import ROOT
from ctm_core.runtime.files import read_json

CHILD = """
import sys
from ctm_core.cli import command
if sys.argv.pop(1) == "returned":
    command._keep_freed_memory = lambda: None
command.run()
"""
#: What is done with freed memory, the environment, and the threads if not those that are given.
WAYS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "as it is": ("kept", {}, None),
    "freed memory returned": ("returned", {}, None),
    "waiting threads sleep at once": ("kept", {"GOMP_SPINCOUNT": "0"}, None),
    "one thread": ("kept", {}, 1),
}
#: Their teachers are trained.
EXPERIMENTS = {
    "photographs, 16×16": ROOT / "studies/photographs/config/experiments/photographs.yaml",
    "digits, 8×8": ROOT / "config/experiments/digits.yaml",
}


def shortened(file: Path, steps: int, folder: Path) -> dict[str, Any]:
    """An experiment with so few steps, on drawn pictures in place of photographs."""
    described: dict[str, Any] = read_yaml(file)
    described["teacher"]["training"] |= {"steps": steps, "warmup_steps": 0, "decay_steps": 0}
    if "reader" in described["dataset"]:
        described["dataset"]["source"] = str(drawn(folder / "pictures"))
    return described


def measure(file: Path, steps: int, repeats: int, threads: int) -> dict[str, list[float]]:
    """Seconds per step of each way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        described, config = shortened(file, steps, folder), folder / "experiment.yaml"
        write_yaml(config, described)
        words = [f"--dataset={described['dataset']['name']}", f"--output={folder / 'data'}"]
        if "reader" in described["dataset"]:
            words.append(f"--config={config}")
        _ctm("kept", {}, "data", *words)
        for number in range(repeats):
            for way, (freed, environment, count) in WAYS.items():
                place = folder / f"{way}-{number}"
                write_yaml(config, described | {"threads": count or threads})
                places = {"config": config, "data": folder / "data", "runs": place / "runs"}
                given = [f"--{key}={value}" for key, value in places.items()]
                _ctm(freed, environment, "teacher", *given, f"--output={place}")
                seconds[way].append(read_json(place / "speed.json")["seconds"] / steps)
    return seconds


def write_yaml(file: Path, content: dict[str, Any]) -> None:
    """Write an experiment."""
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


def _ctm(freed: str, environment: dict[str, str], *words: str) -> None:
    call = [sys.executable, "-c", CHILD, freed, *words]
    subprocess.run(call, check=True, env={**os.environ, **environment}, capture_output=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    lines = [
        f"Milliseconds per step, {arguments.threads} threads; medians of {arguments.repeats}.",
        "",
        f"| teacher | {' | '.join(WAYS)} |",
        f"|---|{'--:|' * len(WAYS)}",
    ]
    for name, file in EXPERIMENTS.items():
        times = measure(file, arguments.steps, arguments.repeats, arguments.threads)
        cells = [f"{1000 * statistics.median(times[way]):.0f}" for way in WAYS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(*lines[-1:], times, sep="\n", flush=True)
    if arguments.docs:
        fill("process", "\n".join(lines))


if __name__ == "__main__":
    main()
