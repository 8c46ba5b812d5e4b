"""Steps of training on one GPU, plain, ours and with each key: parts of benchmarks/gpu.py."""

from __future__ import annotations

from typing import Any

import sizes
import torch
from gpu_bench import Bench, tf32
from limits import STEPS, operations
from parts import WAYS
from rows import once

__all__ = ["batches", "gan", "imagenet", "keys", "tried_keys"]

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
