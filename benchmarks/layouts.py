"""Memory layouts: a U-Net forward and backward at several sizes, with and without channels_last.

What `channels_last: auto` chooses follows from these rows: ``suits_channels_last`` in
ctm_core/config/optimization.py.
"""

from __future__ import annotations

from typing import Any

import torch
from rows import Table, alternate
from sizes import Size, network

from ctm_core.models.networks.layers import channels_last

__all__ = ["layouts"]

WIDTHS, SIDES = (32, 64, 128), (8, 16, 32)
#: Images of a batch times pixels: what fits a processor's time and is enough for a GPU.
PIXELS = 4096


def layouts(
    table: Table, repeats: int, device: str = "cpu", widths: tuple[int, ...] = WIDTHS
) -> None:
    """Rows ``layout WIDTH x SIDE``: contiguous first, channels_last against it."""
    for width in widths:
        for side in SIDES:
            for precision in ("fp32", "bf16"):
                works = {
                    name: _pass(width, side, precision, last, device)
                    for name, last in (("contiguous", False), ("channels_last", True))
                }
                times = alternate(works, repeats)
                for name, taken in times.items():
                    against = None if name == "contiguous" else times["contiguous"]
                    way = f"{precision}, {name}"
                    table.add(f"{width}x{side}", "layout", way, taken, against=against)


def _pass(width: int, side: int, precision: str, last: bool, device: str) -> Any:
    keys = {"model_channels": width, "channel_mult": (1, 2), "num_blocks": 1}
    size = Size(keys | {"attn_resolutions": ()}, side, max(1, PIXELS // side**2), "l2", 1)
    model = network(size, time_s=True).to(device).train()
    x = torch.randn(size.batch, 3, side, side, device=device)
    if last:
        channels_last(model)
        x = x.contiguous(memory_format=torch.channels_last)
    t = torch.full((size.batch,), 2.0, device=device)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            model.G(x, t, t / 2).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
