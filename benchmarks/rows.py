"""The rows of a benchmark, interleaved timing of variants, and the tables of the documentation."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ctm_core.runtime.files import write_text

__all__ = ["Table", "alternate", "fill", "once"]

PAGE = Path(__file__).resolve().parents[1] / "docs/performance.md"
#: Around each table that a benchmark writes.
MARKS = ("<!-- measured: {} -->", "<!-- end of measured: {} -->")


def fill(name: str, text: str, page: Path = PAGE) -> None:
    """Put ``text`` between the marks of a name in a page."""
    begin, end = (mark.format(name) for mark in MARKS)
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    assert found and end in rest, f"{page} has no marks of {name}"
    write_text(page, f"{before}{begin}\n{text}\n{end}{after}")


class Table:
    """The rows measured so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self, size: str, part: str, way: str, times: list[tuple[float, float]], **more: Any
    ) -> None:
        """Medians of (wall, CPU) seconds; ``against`` is the list of another variant."""
        against = more.pop("against", None)
        row: dict[str, Any] = {
            "size": size,
            "part": part,
            "way": way,
            "seconds": statistics.median(wall for wall, _ in times),
            "cpu_seconds": statistics.median(cpu for _, cpu in times),
            "repeats": len(times),
        }
        if against is not None:
            for place, name in enumerate(("faster", "faster_cpu")):
                pairs = zip(against, times, strict=True)
                row[name] = statistics.median(one[place] / other[place] for one, other in pairs)
        self.put(row | more)

    def put(self, row: dict[str, Any]) -> None:
        """Record one row and print it."""
        self.rows.append(row)
        print(_line(row), flush=True)


def once(work: Callable[[], object]) -> tuple[float, float]:
    """(Wall, CPU) seconds, including child processes that end meanwhile."""
    began, cpu = time.perf_counter(), _processor()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began, _processor() - cpu


def _processor() -> float:
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def alternate(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[Any]]:
    """(Wall, CPU) seconds of each, interleaved, after one warm-up round."""
    for work in works.values():
        work()
    times: dict[str, list[Any]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(once(work))
    return times


def _line(row: dict[str, Any]) -> str:
    line = f"{row['size']:<8} {row['part']:<22} {row['way']:<28}"
    if "gigabytes" in row:
        return (
            line
            + f"{row['gigabytes']:9.2f} GB"
            + (f" {row['share']:8.2f} ×" if "share" in row else "")
        )
    line += f"{row['seconds']:9.3f} s {row['cpu_seconds']:9.3f} CPU-s"
    if "faster" in row:
        line += f" {row['faster']:7.2f} × {row['faster_cpu']:7.2f} × CPU"
    if "of_limit" in row:
        line += f" {row['of_limit']:7.0%} of {row['step_cpu_seconds']:.3f} CPU-s"
    if "network_seconds" in row:
        line += f"  network {row['network_seconds']:.3f} s, other {row['other_seconds']:.3f} s"
    if "other_faster" in row:
        line += f" ({row['network_faster']:.2f} × and {row['other_faster']:.2f} × less)"
    for key in ("gradients_differ", "values_differ"):
        if key in row:
            line += f"  {key.replace('_', ' ')} by {row[key]:.0e}"
    return line
