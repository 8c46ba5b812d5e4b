"""What a step would take if it were its convolutions and matrix products alone.

Every product of one step is recorded with the shapes, strides and dtypes of its operands, and
timed again by itself. Their sum is a limit that reordering cannot pass on this machine; the share
of it that a step reaches says more than a ratio to another implementation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import sizes
import torch
from parts import WAYS
from rows import Table, once
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["STEPS", "limits", "markdown", "operations", "products_alone"]

PRODUCTS = {
    "convolution",
    "convolution_backward",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_dot_product_flash_attention_for_cpu",
}
#: Steps by name: the trainer's method, and whether it has an adversary.
STEPS = {
    "step": ("_generator_step", False),
    "D step": ("_discriminator_step", True),
    "G step": ("_generator_step", True),
}


class _Operand:
    """A tensor that is left out, by what its time depends on."""

    def __init__(self, x: torch.Tensor) -> None:
        self.key = (tuple(x.shape), x.stride(), x.dtype, x.device)

    def __repr__(self) -> str:
        return repr(self.key)

    def made(self) -> torch.Tensor:
        """Another tensor of these properties."""
        shape, stride, dtype, device = self.key
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True) if n)
        return torch.rand(last + 1, device=device).to(dtype).as_strided(shape, stride)


class _Recorder(TorchDispatchMode):
    """How often each product is called, and how to call it again."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.calls: dict[str, tuple[Any, Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in PRODUCTS:
            plain = tree_map(
                lambda x: _Operand(x) if isinstance(x, torch.Tensor) else x, (args, kwargs or {})
            )
            key = f"{func} {plain}"
            self.counts[key] += 1
            self.calls[key] = (func, *plain)
        return func(*args, **(kwargs or {}))


def products_alone(work: Callable[[], object], repeats: int = 2) -> float:
    """Seconds of all products of ``work``, each by itself: of the CPU, or elapsed on a GPU."""
    with _Recorder() as recorder:
        work()
    total = 0.0
    for key, count in recorder.counts.items():
        func, *plain = recorder.calls[key]
        args, kwargs = tree_map(lambda x: x.made() if isinstance(x, _Operand) else x, plain)
        on_gpu = any(x.is_cuda for x in tree_leaves(args) if isinstance(x, torch.Tensor))
        func(*args, **kwargs)
        total += count * min(_seconds(lambda: func(*args, **kwargs), on_gpu)  # noqa: B023
                             for _ in range(repeats))  # fmt: skip
    return total


def _seconds(work: Callable[[], object], on_gpu: bool) -> float:
    if not on_gpu:
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(5):  # one alone would be its launch
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 5


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of all products of ``work``."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def limits(table: Table, size: str, ways: tuple[str, ...] = tuple(WAYS)) -> None:
    """Rows ``products``: every kind of step in every variant against its products alone."""
    for name, (method, adversarial) in STEPS.items():
        if adversarial and size != "cifar10":
            continue
        for way in ways:
            trainer = sizes.trainer(size, adversarial=adversarial, **WAYS[way])
            work = getattr(trainer, method)
            work()
            taken = min(once(work)[1] for _ in range(2))
            alone = products_alone(work)
            row = {"size": size, "part": f"{name}, products alone", "way": way}
            row |= {"seconds": alone, "cpu_seconds": alone, "step_cpu_seconds": taken}
            table.put(row | {"of_limit": alone / taken})


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of shares."""
    known = [row for row in rows if "of_limit" in row]
    if not known:
        return []
    lines = [
        "",
        "CPU seconds of a step, those of its convolutions and matrix products, each timed alone, "
        "and their share, which is how near the step comes to this machine's own rate.",
        "",
        "| size | step | variant | step, CPU-s | products alone, CPU-s | share |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in known:
        name = row["part"].removesuffix(", products alone")
        lines.append(
            f"| {row['size']} | {name} | {row['way']} | {row['step_cpu_seconds']:.3g} | "
            f"{row['cpu_seconds']:.3g} | {row['of_limit']:.0%} |"
        )
    return lines
