"""What the installed torch can do with the GPUs of this machine; where it cannot, one sentence.

``python -m ctm_core.runtime.cuda`` says it at the end of ``make setup``, and :func:`device` at the
first use, instead of CUDA's "no kernel image is available for execution on the device".
"""

from __future__ import annotations

import gc
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ctm_core.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

#: The oldest torch that works, as in pyproject.toml.
OLDEST = (2, 9)
#: The driver that a major version of CUDA needs at least.
DRIVERS = {12: 525, 13: 580}
#: What the kernel knows of NVIDIA's driver and cards, and the devices that a process may open.
PROC, DEV = Path("/proc/driver/nvidia"), Path("/dev")
VOLTA = "`make setup TORCH=volta` (torch 2.10 with CUDA 12.8, for drivers from 525)"
ON_CPU = "set CUDA_VISIBLE_DEVICES= (empty) to compute on the processor"


def device(index: int | None = None) -> torch.device:
    """The GPU to compute on, the current one or that of a process; without any, the processor.

    Raises
    ------
    UserError
        If the installed torch is too old, or there is a GPU that it cannot use.
    """
    import torch

    check_version(torch.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the driver and the card: said below, in one sentence
        if not torch.cuda.is_available():
            check_driver()
            return torch.device("cpu")
        gpu = torch.device("cuda")
        if index is not None:
            gpu = torch.device("cuda", index % torch.cuda.device_count())
        try:
            check_kernels(gpu)
            torch.zeros((), device=gpu)
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[0]
            raise UserError(
                f"the GPU cannot be used ({problem}): another process may hold it, see "
                f"`nvidia-smi`; wait, name another by CUDA_VISIBLE_DEVICES, or {ON_CPU}"
            ) from None
    return gpu


def check_version(version: str) -> None:
    """Raise UserError if a version of torch is too old."""
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if release < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UserError(
            f"torch {version} is installed, but {oldest} or newer is needed: run `make setup`, or "
            "`make setup TORCH=own PYTHON=…` with a Python that has one"
        )


def check_driver() -> None:
    """Raise UserError if there is a card whose driver is too old for the installed torch."""
    import torch

    release = _driver()
    if torch.version.cuda is None or release is None or not any(DEV.glob("nvidia[0-9]*")):
        return
    major = int(torch.version.cuda.split(".")[0])
    needed, branch = DRIVERS.get(major, 0), int(release.split(".")[0])
    if branch >= needed:
        return  # the card is not for this process, as in a job without GPUs
    older = f"run {VOLTA}, " if major > 12 and branch >= DRIVERS[12] else ""
    raise UserError(
        f"{_card()} has driver {release}, but {_build()} needs {needed} or newer: {older}update "
        f"the driver, or {ON_CPU}"
    )


def check_kernels(gpu: torch.device) -> None:
    """Raise UserError if the installed torch has no kernels for a card."""
    import torch

    kernels = torch.cuda.get_arch_list()
    capability = torch.cuda.get_device_capability(gpu)
    if torch.version.cuda is None or not kernels or runs(capability, kernels):
        return  # ROCm's kernels have other names
    oldest = min(found for kernel in kernels if (found := _numbers(kernel)))
    remedy = f"run {VOLTA}" if capability < oldest else "install a newer torch"
    if capability < (7, 0):
        remedy = "no torch that this project works with has any; use a newer card"
    raise UserError(
        f"{torch.cuda.get_device_name(gpu)} (sm_{capability[0]}{capability[1]}, driver "
        f"{_driver() or 'unknown'}) cannot run {_build()}, which has kernels for "
        f"{', '.join(kernels)}: {remedy}, or {ON_CPU}"
    )


def runs(capability: tuple[int, int], kernels: Iterable[str]) -> bool:
    """Whether a card runs any of some kernels: ``sm_80`` serves 8.0 to 8.9, ``compute_80`` all."""
    for kernel in kernels:
        numbers = _numbers(kernel)
        if numbers is None:
            continue
        if kernel.startswith("compute_") and numbers <= capability:
            return True
        if numbers[0] == capability[0] and numbers <= capability:
            return True
    return False


def check_precision(precision: str | None, where: torch.device, key: str = "precision") -> None:
    """Raise UserError if a GPU would only emulate bf16."""
    import torch

    if precision != "bf16" or where.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{key}: bf16, but {torch.cuda.get_device_name(where)} has no instructions for bf16 "
            f"and only emulates it, slower than fp32: use fp32"
        )


def check_present(gpus: int, visible: str | None) -> None:
    """Raise UserError if an experiment asks for GPUs where none can be used; loads no torch.

    ``visible`` is CUDA_VISIBLE_DEVICES: if empty, the processor is what the user wants; if a batch
    system has set it, there are some.
    """
    if gpus < 1 or visible == "":
        return
    problem = None
    if any(any(DEV.glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg")):
        version = metadata.version("torch")
        if version.endswith("+cpu"):
            problem = f"torch {version} uses none: run `make setup TORCH=cuda`"
    elif visible is None:
        problem = "this machine has none: run it where there are some"
    if problem is not None:
        raise UserError(
            f"the experiment asks for {gpus} {'GPU' if gpus == 1 else 'GPUs'}, but {problem}, set "
            f"`gpus: 0` in its `resources:`, or {ON_CPU}"
        )


def largest_fitting(sizes: Iterable[int], attempt: Callable[[int], object]) -> int | None:
    """The first of some sizes, the largest first, for which a computation finds memory."""
    import torch

    for size in sizes:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            continue
        return size
    return None


def room(where: torch.device) -> str:
    """The memory of a device in words, with what other processes hold of it."""
    import torch

    if where.type != "cuda":
        return "memory"
    free, total = torch.cuda.mem_get_info(where)
    others = max(total - free - torch.cuda.memory_reserved(where), 0)
    words = f"the {total / 1e9:.1f} GB of {torch.cuda.get_device_name(where)}"
    # CUDA itself takes some hundreds of MB for each process.
    return words if others < 1e9 else f"{words}, of which other processes hold {others / 1e9:.1f}"


def _numbers(kernel: str) -> tuple[int, int] | None:
    """(8, 6) of ``sm_86``; None of one for a single card (``sm_90a``)."""
    match = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)", kernel)
    return (int(match[1]), int(match[2])) if match else None


def _driver() -> str | None:
    """The release of NVIDIA's driver, ``570.86.15``."""
    try:
        text = (PROC / "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return match[1] if match else None


def _card() -> str:
    """The name of the first card, as its driver has it."""
    for file in sorted(PROC.glob("gpus/*/information")):
        match = re.search(r"^Model:\s*(\S.*?)\s*$", file.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1]
    return "the GPU"


def _build() -> str:
    import torch

    return f"torch {torch.__version__} (CUDA {torch.version.cuda})"


def main(say: Callable[[str], object] = print) -> int:
    """Say which device the installed torch will use; the exit code."""
    try:
        chosen = device()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    import torch

    name = "the processor" if chosen.type == "cpu" else torch.cuda.get_device_name(chosen)
    say(f"torch {torch.__version__} computes on {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
