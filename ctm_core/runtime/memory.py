"""Memory that a process can still have."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO, OWN_GROUP, GROUPS = (
    Path(path) for path in ("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup")
)


def available(device: torch.device) -> int:
    """Bytes: free on a GPU; on a processor what the kernel and the control group still allow."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    most = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    try:
        path = OWN_GROUP.read_text(encoding="utf-8").strip().removeprefix("0::")
        group = GROUPS / path.lstrip("/")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no group, one of version 1, or no limit ("max")
        return most
    return max(0, min(most, limit - used))
