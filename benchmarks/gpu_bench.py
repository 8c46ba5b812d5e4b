"""One run of benchmarks/gpu.py: its device, its rows, its child processes, its limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core.config.project import ROOT

__all__ = ["Bench", "CutOffError", "limited", "tf32"]


class CutOffError(Exception):
    """A part reached its limit."""


@dataclass
class Bench:
    """One run: where it computes, where its rows go, and what it has measured."""

    device: str
    tiny: bool
    output: Path
    folder: Path
    minutes: float = 0.0  #: that the part `hour` may take

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

    def child(
        self,
        *words: str,
        device: str | None = None,
        code: int | None = 0,
        each: Callable[[str], object] = lambda line: None,
    ) -> str:
        """The output of another Python process, and ``each`` line as it comes.

        The process is killed if this part is cut off.
        """
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
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                each(line)
            process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        text = "".join(lines)
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
