"""Everything there is to know about one GPU, in five minutes and one command.

    python benchmarks/gpu.py [--parts machine verify …] [--limit 300] [--output results/gpu.jsonl]
    python benchmarks/gpu.py --device cpu --tiny      # rehearses every line without a GPU

Every part has a limit in seconds of its own. A row is printed and appended to the output as soon
as it is measured, so a run that is cut off leaves all it had. No network and no Snakemake are
needed. ``python docs/gpu_table.py`` writes the rows into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import sizes
import smoke_dag
import torch
from limits import STEPS, operations
from parts import WAYS, sampling
from rows import Table, once
from scoring import photographs

from ctm_core import verification
from ctm_core.config import load_experiment
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
#: Training keys that are tried beside `ours`.
OURS: dict[str, Any] = {"kernel": "fused"}
KEYS: dict[str, dict[str, Any]] = {
    "plain": WAYS["plain"],
    "ours": OURS,
    "tf32": OURS | {"tf32": True},
    "frozen_precision: bf16": OURS | {"frozen_precision": "bf16"},
    "bf16": OURS | {"precision": "bf16"},
    "bf16, channels_last": OURS | {"precision": "bf16", "channels_last": True},
    "bf16, attention: sdpa": OURS | {"precision": "bf16", "attention": "sdpa"},
    "bf16, compile": OURS | {"precision": "bf16", "compile": True},
    "bf16, channels_last, compile": OURS
    | {"precision": "bf16", "channels_last": True, "compile": True},
}


class CutOffError(Exception):
    """A part reached its limit."""


@dataclass
class Bench:
    """One run: where it computes, where its rows go, and what it has measured."""

    device: str
    tiny: bool
    output: Path
    folder: Path

    def __post_init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.run = int(time.time())

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.device == "cuda"

    def record(self, part: str, **row: Any) -> None:
        """Print a row and append it to the output, on disk before anything else happens."""
        shown = {k: v for k, v in row.items() if not isinstance(v, list | dict)}
        print(
            f"{part:<10}",
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                      for k, v in shown.items()),
            flush=True,
        )  # fmt: skip
        with self.output.open("a", encoding="utf-8") as file:
            head = {"part": part, "run": self.run, "device": self.device}
            file.write(json.dumps(head | row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def child(self, *words: str, device: str | None = None, code: int | None = 0) -> str:
        """The output of another Python process; it is killed if this part is cut off."""
        seen = {} if (device or self.device) == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | seen | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            text, _ = process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if code is not None and process.returncode != code:
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {text[-800:]}")
        return text


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`CutOffError` in this process after so many seconds."""

    def cut(*_: Any) -> None:
        raise CutOffError

    before = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products of float32 numbers rounded to TF32, or not."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# -- the machine, its numbers, its memory of a kill ----------------------------------------------


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
    config = smoke_dag.write_config(bench.folder, tiny=bench.tiny)
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


# -- steps ---------------------------------------------------------------------------------------


def step(
    bench: Bench, part: str, size: str, way: str, *, batch: int, kind: str = "step", **keys: Any
) -> None:
    """One kind of step in one variant: time, rate, memory, share of the measured peak."""
    method, adversarial = STEPS[kind]
    repeats, size = (1, "tiny") if bench.tiny else (3, size)
    batch = min(batch, 2) if bench.tiny else batch
    if adversarial and bench.tiny:
        size = "tiny"
    rounded = "bf16" if keys.get("precision") == "bf16" else "tf32" if keys.get("tf32") else "fp32"
    with tf32(rounded == "tf32"):
        trainer = sizes.trainer(
            size, adversarial=adversarial, device=bench.device, batch=batch, **keys
        )
        work = getattr(trainer, method)
        work()
        flops = operations(work)
        if bench.gpu:
            torch.cuda.reset_peak_memory_stats()
        taken = min(once(work)[0] for _ in range(repeats))
    row: dict[str, Any] = {"size": size, "kind": kind, "way": way, "batch": batch}
    row |= {"seconds": taken, "images_per_second": batch / taken, "teraflop": flops / 1e12}
    if bench.gpu:
        row["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if rounded in bench.peaks:
        row |= {"share_of_peak": flops / taken / bench.peaks[rounded], "peak": rounded}
    bench.record(part, **row)
    if part == "keys":
        bench.seconds[way] = taken
    del trainer, work
    if bench.gpu:
        torch.cuda.empty_cache()


def tried_keys(tiny: bool) -> dict[str, dict[str, Any]]:
    """:data:`KEYS`, of which a rehearsal leaves out what would compile for minutes."""
    return {way: keys for way, keys in KEYS.items() if not (tiny and "compile" in keys)}


def keys(bench: Bench) -> None:
    """A CIFAR-size step: plain, ours, and with each key, at one micro-batch."""
    for way, chosen in tried_keys(bench.tiny).items():
        try:
            step(bench, "keys", "cifar10", way, batch=32, **chosen)
        except (RuntimeError, ValueError) as error:  # one key that fails leaves the others
            bench.record("keys", way=way, failed=str(error).strip().splitlines()[0][:300])


def batches(bench: Bench) -> None:
    """The fastest of the keys at other micro-batches."""
    best = min(bench.seconds, key=lambda way: bench.seconds[way], default="bf16")
    for batch in (16, 64, 256):
        try:
            step(bench, "batches", "cifar10", best, batch=batch, **KEYS[best])
        except torch.OutOfMemoryError:
            bench.record("batches", way=best, batch=batch, failed="does not fit into the memory")


def imagenet(bench: Bench) -> None:
    """A step at ImageNet size, as its experiment has it."""
    step(bench, "imagenet", "imagenet64", "bf16", batch=8, **KEYS["bf16"])


def gan(bench: Bench) -> None:
    """Both steps with the adversarial loss."""
    for way in ("ours", "bf16, channels_last"):
        for kind in ("D step", "G step"):
            step(bench, "gan", "cifar10", way, batch=16, kind=kind, **KEYS[way])


# -- sampling, scoring, the pipeline -------------------------------------------------------------


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


def processes(bench: Bench) -> None:
    """One training by two processes on this device, and by one: how far are their losses?"""
    config = smoke_dag.write_config(bench.folder, tiny=bench.tiny)
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
    folders = [("cpu", bench.folder / "smoke-cpu"), (bench.device, bench.folder / "smoke-device")]
    tiny = ["--tiny"] if bench.tiny else []
    script = str(Path(smoke_dag.__file__).resolve())
    for device, folder in folders:
        began = time.monotonic()
        bench.child(script, str(folder), *tiny, device=device)
        bench.record("smoke", where=device, seconds=time.monotonic() - began)
    cells = smoke_dag.differences(*(folder for _, folder in folders))
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
}


def run(bench: Bench, parts: list[str], limit: float) -> bool:
    """Every part within its own limit and the whole one's; whether all came to their ends.

    A rehearsal is as slow as the processor that it runs on, so its limits are wide.
    """
    began, whole, slack = time.monotonic(), True, 60 if bench.tiny else 1
    for name in parts:
        left = slack * limit - (time.monotonic() - began)
        at = time.monotonic()
        outcome = "done"
        try:
            with limited(max(0.01, min(slack * LIMITS[name], left))):
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything small: a rehearsal")
    parser.add_argument("--limit", type=float, default=300, help="seconds of all parts together")
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
        bench = Bench(given.device, given.tiny, given.output, Path(folder))
        whole = run(bench, given.parts, given.limit)
    parser.exit(0 if whole else 1, f"gpu: {given.output} written\n")


if __name__ == "__main__":
    main()
