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
#: What is done with freed memory, and the environment.
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "as it is": ("kept", {}),
    "freed memory returned": ("returned", {}),
    "waiting threads sleep at once": ("kept", {"GOMP_SPINCOUNT": "0"}),
    "one thread": ("kept", {"OMP_NUM_THREADS": "1"}),
}
#: Their teachers are trained.
EXPERIMENTS = {
    "photographs, 16×16": ROOT / "studies/photographs/config/experiments/photographs.yaml",
    "digits, 8×8": ROOT / "config/experiments/digits.yaml",
}


def shortened(file: Path, steps: int, folder: Path) -> tuple[Path, list[str]]:
    """An experiment with so few steps, and the words that prepare its data."""
    described: dict[str, Any] = read_yaml(file)
    described["teacher"]["training"] |= {"steps": steps, "warmup_steps": 0, "decay_steps": 0}
    config, dataset = folder / "experiment.yaml", described["dataset"]
    words = ["--dataset", str(dataset)]
    if isinstance(dataset, dict):
        dataset["source"] = str(drawn(folder / "pictures"))
        words = ["--dataset", dataset["name"], "--config", str(config)]
    config.write_text(yaml.safe_dump(described), encoding="utf-8")
    return config, words


def measure(file: Path, steps: int, repeats: int, threads: int) -> dict[str, list[float]]:
    """Seconds per step of each way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config, words = shortened(file, steps, folder)
        _ctm("kept", {}, "data", *words, "--output", str(folder / "data"))
        for number in range(repeats):
            for way, (freed, environment) in WAYS.items():
                place = folder / f"{way}-{number}"
                places = {"config": config, "data": folder / "data", "runs": place / "runs"}
                given = [f"--{key}={value}" for key, value in places.items()]
                variables = {"OMP_NUM_THREADS": str(threads)} | environment
                _ctm(freed, variables, "teacher", *given, f"--output={place}")
                seconds[way].append(read_json(place / "speed.json")["seconds"] / steps)
    return seconds


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
