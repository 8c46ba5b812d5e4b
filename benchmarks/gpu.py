"""Everything there is to know about one GPU, in five minutes and one command.

    python benchmarks/gpu.py [--parts machine verify …] [--limit 300] [--output results/gpu.jsonl]
    python benchmarks/gpu.py --minutes 60             # then photographs, cut to so many minutes
    python benchmarks/gpu.py --device cpu --tiny      # rehearses every line without a GPU

Every part has a limit in seconds of its own. A row is printed and appended to the output as soon
as it is measured, so a run that is cut off leaves all it had. No network and no Snakemake are
needed. ``python docs/gpu_table.py`` writes the rows into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from gpu_bench import Bench, CutOffError, limited, tf32
from gpu_steps import batches, gan, imagenet, keys
from gpu_trainings import hour, processes, resume, smoke
from parts import sampling
from rows import Table, once
from scoring import photographs

from ctm_core import verification
from ctm_core.config.project import ROOT
from ctm_core.config.protocols import Protocol
from ctm_core.models.features import build_features
from ctm_core.runtime import cuda
from ctm_core.runtime.errors import UserError
from ctm_core.verification.golden import Folder

#: Side of the square products whose rate is the peak.
SIDE, TINY_SIDE = 8192, 256
#: Seconds that each part may take; all together stay below five minutes.
LIMITS = {
    "machine": 15,
    "verify": 50,
    "resume": 35,
    "keys": 45,
    "batches": 25,
    "imagenet": 25,
    "gan": 20,
    "sampling": 25,
    "scoring": 10,
    "processes": 20,
    "smoke": 30,
}


def machine(bench: Bench) -> None:
    """Card, driver, versions, and the measured rate of large products and copies."""
    facts: dict[str, Any] = {"card": platform.processor() or platform.machine()}
    if bench.gpu:
        properties = torch.cuda.get_device_properties(0)
        facts = {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": properties.total_memory / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        if program := shutil.which("nvidia-smi"):
            query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
            facts["driver"] = subprocess.run(
                query, capture_output=True, text=True, check=False
            ).stdout.strip()
    bench.record("machine", **facts, torch=torch.__version__, python=platform.python_version())
    side = TINY_SIDE if bench.tiny else SIDE
    for name, dtype, rounded in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        with tf32(rounded):
            a = torch.randn(side, side, device=bench.device, dtype=dtype)
            taken = _fastest(lambda a=a: a @ a)
        bench.peaks[name] = 2 * side**3 / taken
        bench.record("machine", peak=name, teraflops=bench.peaks[name] / 1e12)
    a = torch.empty(side, side, device=bench.device)
    b = torch.empty_like(a)
    rate = 2 * a.nbytes / _fastest(lambda: b.copy_(a))
    bench.record("machine", peak="copy", gigabytes_per_second=rate / 1e9)


def _fastest(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    return min(once(work)[0] for _ in range(repeats))


def verify(bench: Bench) -> None:
    """Every case of the golden sets: float32 without TF32, float64, and bf16 autocast."""
    folders = [Folder(ROOT / "tests/golden" / name) for name in ("data", "methods")]
    cases = [(case, f) for f in folders for case in verification.cases(f) if case.on_device]
    if bench.tiny:
        cases = [(case, folder) for case, folder in cases if case.function.__name__ == "jumps"]
    with tf32(False):
        for precision in (torch.float32, torch.bfloat16, torch.float64):
            results = []
            for case, folder in cases:
                lowered = (torch.bfloat16,) if case.lowered else ()
                if precision in (*case.precisions, *lowered):
                    place = torch.device(bench.device)
                    results.append(verification.check(case, folder, precision, place))
            failed = [f"{r.case.name}: {r.reason}" for r in results if not r.passed]
            bench.record(
                "verify",
                precision=str(precision).removeprefix("torch."),
                passed=not failed,
                checks=sum(len(r.checks) for r in results),
                worst_of_tolerance=max(r.severity for r in results),
                failed=failed,
            )


def samples(bench: Bench) -> None:
    """Sampling at NFE 1, 2 and 35, in fp32 and bf16."""

    class Rows(Table):
        def put(self, row: dict[str, Any]) -> None:
            kept = ("size", "way", "seconds", "images_per_second")
            bench.record("sampling", what=row["part"], **{key: row[key] for key in kept})

    size, count = ("tiny", 2) if bench.tiny else ("cifar10", 256)
    sampling(Rows(), size, 1, device=bench.device, count=count, plain=False)


def scoring(bench: Bench) -> None:
    """EfficientNet-Lite0's features of images of 32 pixels, read at 299."""
    count = 16 if bench.tiny else 2000
    images = photographs(count, "samples")
    for precision in ("fp32", "bf16"):
        described = {
            "name": "bench",
            "features": "efficientnet_lite0",
            "input_size": 32 if bench.tiny else 299,
            "resize": "clean",
            "reference": {"dataset": "digits"},
            "samples": count,
            "precision": precision,
        }
        extractor = build_features(Protocol.model_validate(described))
        extractor(images[:16])
        taken = once(lambda extract=extractor: extract(images))[0]
        row = {"seconds": taken, "images_per_second": count / taken}
        bench.record("scoring", what="scoring, EfficientNet-Lite0", way=precision, **row)


PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "verify": verify,
    "resume": resume,
    "keys": keys,
    "batches": batches,
    "imagenet": imagenet,
    "gan": gan,
    "sampling": samples,
    "scoring": scoring,
    "processes": processes,
    "smoke": smoke,
    "hour": hour,
}


def run(bench: Bench, parts: list[str], limit: float) -> bool:
    """Every part within its own limit and the whole one's; whether all came to their ends.

    A rehearsal is as slow as the processor that it runs on, so its limits are wide.
    """
    began, whole, slack = time.monotonic(), True, 60 if bench.tiny else 1
    limits = {"hour": 60 * bench.minutes, **LIMITS}
    for name in parts:
        left = slack * limit - (time.monotonic() - began)
        at = time.monotonic()
        outcome = "done"
        try:
            with limited(max(0.01, min(slack * limits[name], left))):
                PARTS[name](bench)
        except CutOffError:
            outcome = "cut off"
        except Exception as error:  # the other parts are still worth having
            outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        whole = whole and outcome == "done"
        bench.record(name, outcome=outcome, took=time.monotonic() - at)
    return whole


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, help="default: all, `hour` if it has minutes"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="of the part `hour`")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything small: a rehearsal")
    parser.add_argument("--limit", type=float, default=300, help="seconds of the other parts")
    parser.add_argument("--output", type=Path, default=Path("results/gpu.jsonl"))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "gpu: torch finds no GPU here; rehearse with --device cpu --tiny\n")
    if given.device == "cuda":
        try:
            cuda.device()
        except UserError as error:  # a GPU that the installed torch cannot use
            parser.exit(2, f"gpu: {error}\n")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        minutes = given.minutes or float(given.tiny)
        bench = Bench(given.device, given.tiny, given.output, Path(folder), minutes)
        parts = given.parts or [name for name in PARTS if name != "hour" or minutes]
        whole = run(bench, parts, given.limit + 60 * minutes)
    parser.exit(0 if whole else 1, f"gpu: {given.output} written\n")


if __name__ == "__main__":
    main()
