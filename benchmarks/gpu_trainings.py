"""Whole trainings on one GPU, by the verbs of `ctm`: parts of benchmarks/gpu.py."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import shortened
import verbs
from gpu_bench import Bench

from ctm_core.config import load_experiment
from ctm_core.plan import plan

__all__ = ["hour", "processes", "resume", "smoke"]

RESUME = """
import os, signal, sys
from ctm_core.training.loop import Trainer
step, kill = Trainer._step, int(sys.argv.pop(1))
def counted(self):
    if self.step == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
Trainer._step = counted
from ctm_core.cli import main
main()
"""


def resume(bench: Bench) -> None:
    """A training that is killed and started again, and one that is not: the same bytes?"""
    config = shortened.smoke(bench.folder, tiny=bench.tiny)
    steps = load_experiment(config).training("teacher").steps
    data, weights = _data(bench), []
    for name, kills in (("whole", (-1,)), ("killed", (steps - 1, -1))):
        place = bench.folder / f"resume-{name}"
        words = _words("teacher", config=config, data=data, output=place, runs=bench.folder / name)
        for kill in kills:
            code = 0 if kill < 0 else -signal.SIGKILL
            bench.child("-c", RESUME, str(kill), *words, code=code)
        weights.append((place / "teacher.safetensors").read_bytes())
    bench.record("resume", killed_after=steps - 1, same_bits=weights[0] == weights[1])


def _data(bench: Bench) -> Path:
    """The digits, prepared once."""
    folder = bench.folder / "digits"
    if not folder.exists():
        bench.child("-m", "ctm_core.cli", *_words("data", dataset="digits", output=folder))
    return folder


def _words(verb: str, **options: Any) -> list[str]:
    return [verb, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def processes(bench: Bench) -> None:
    """One training by two processes on this device, and by one: how far are their losses?"""
    config = shortened.smoke(bench.folder, tiny=bench.tiny)
    data, curves = _data(bench), []
    for count, place in ((1, bench.folder / "resume-whole"), (2, bench.folder / "processes")):
        if not place.exists():  # else the part `resume` has made it
            options = {"output": place, "runs": place / "runs", "processes": count}
            words = _words("teacher", config=config, data=data, **options)
            bench.child("-m", "ctm_core.cli", *words)
        lines = (place / "training.jsonl").read_text(encoding="utf-8").splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    apart = max(abs(a / b - 1) for a, b in zip(*curves, strict=True))
    bench.record("processes", processes=2, losses=len(curves[0]), furthest=apart)


def smoke(bench: Bench) -> None:
    """The smoke experiment from data to table, here and on the CPU, value by value."""
    config = shortened.smoke(bench.folder, tiny=bench.tiny)
    folders = [("cpu", bench.folder / "smoke-cpu"), (bench.device, bench.folder / "smoke-device")]
    for device, folder in folders:
        began = time.monotonic()
        bench.child(*_run(config, folder), device=device)
        bench.record("smoke", where=device, seconds=time.monotonic() - began)
    cells = verbs.differences(*(folder for _, folder in folders))
    pairs = [(a, b) for a, b in (cell["values"] for cell in cells) if None not in (a, b)]
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs]
    bench.record(
        "smoke",
        values=len(cells),
        compared=len(pairs),
        equal=sum(a == b for a, b in pairs),
        median_difference=sorted(apart)[len(apart) // 2],
        largest_difference=max(apart),
        cells=cells,
    )


#: Steps of the probe that measures how fast the card is, as a share of the hour's.
PROBE = 0.004
#: Of the time that is left after the probe, what networks may take.
FILLED = 0.75


def hour(bench: Bench) -> None:
    """Photographs from a teacher to the table, cut to the minutes that are given."""
    began, minutes = time.monotonic(), bench.minutes
    scale, samples = (0.002, 8) if bench.tiny else _size(bench, began)
    config = shortened.hour(bench.folder, scale=scale, samples=samples, tiny=bench.tiny)
    bench.record("hour", minutes=minutes, scale=scale, samples=samples)
    folder = bench.folder / "hour"
    bench.child(*_run(config, folder), each=lambda line: _job(bench, line))
    with (folder / "results/table.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            [metric] = [key for key in row if key.endswith(f"_{samples}_mean")]
            low, high = (row[metric[:-4] + f"ci95_{end}"] for end in ("low", "high"))
            value = {"value": float(row[metric]), "metric": metric.removesuffix("_mean")}
            value["interval"] = [float(end) for end in (low, high) if end]
            cell = {key: row[key] for key in ("model", "sampler", "nfe", "gamma")}
            bench.record("hour", **cell, **value)


def _size(bench: Bench, began: float) -> tuple[float, int]:
    """The scale that fits into the minutes, after a short training of the teacher; samples."""
    probe = shortened.hour(bench.folder, scale=PROBE, samples=10_000, tiny=False)
    bench.child(*_run(probe, bench.folder / "hour"), "--until", "teacher")
    place = bench.folder / "hour/results/cifar10-hour/teacher/seed-0"
    seconds = json.loads((place / "speed.json").read_text(encoding="utf-8"))["seconds"]
    estimates = plan(shortened.EXPERIMENTS / "cifar10-hour.yaml").estimates
    [teacher] = [e for e in estimates if (e.job.kind, e.job.model) == ("train", "teacher")]
    rate = PROBE * teacher.operations / seconds
    bench.record("hour", teraflops=rate / 1e12)
    left = FILLED * (60 * bench.minutes - (time.monotonic() - began))
    scale = max(PROBE / 4, left * rate / sum(e.operations for e in estimates))
    return scale, min(10_000, max(500, round(10_000 * scale)))


def _run(config: Path, folder: Path) -> tuple[str, ...]:
    return str(Path(verbs.__file__).resolve()), str(config), str(folder)


def _job(bench: Bench, line: str) -> None:
    """A row for each finished job, which verbs.py names in a line."""
    if line.startswith(verbs.TOOK):
        seconds, label = line.removeprefix(verbs.TOOK).split(maxsplit=1)
        bench.record("hour", job=label.strip(), seconds=float(seconds))
