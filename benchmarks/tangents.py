"""What F and its derivative along a path cost beside a forward pass: ``tangent WIDTH x SIDE``.

``TANGENT`` in ctm_core/plan/network_costs.py is the ratio of CPU seconds at the largest width, by
which ``ctm plan`` and equal budgets count the derivative.
"""

from __future__ import annotations

import torch
from rows import Table, alternate
from sizes import Size, network

from ctm_core.diffusion.tangent import tangent

__all__ = ["tangents"]

WIDTHS, SIDE, BATCH = (16, 32, 64), 32, 4


def tangents(table: Table, repeats: int, device: str = "cpu") -> None:
    """A forward pass first; the derivative, and a forward and backward pass, against it."""
    for width in WIDTHS:
        keys = {"model_channels": width, "channel_mult": (1, 2), "num_blocks": 2}
        size = Size(keys | {"attn_resolutions": (16,)}, SIDE, BATCH, "l2", 1)
        model = network(size, time_s=True).to(device).train()
        x = torch.randn(BATCH, 3, SIDE, SIDE, device=device)
        t = torch.full((BATCH,), 2.0, device=device)

        def forward() -> None:
            with torch.no_grad():
                model.raw(x, t, t / 2)  # noqa: B023 (called within the loop)

        works = {
            "forward": forward,
            "with its derivative": lambda: tangent(model, x, t, t / 2, x),  # noqa: B023
            "forward, backward": lambda: model.raw(x, t, t / 2).square().mean().backward(),  # noqa: B023
        }
        times = alternate(works, repeats)
        for name, taken in times.items():
            against = None if name == "forward" else times["forward"]
            table.add(f"{width}x{SIDE}", "tangent", name, taken, against=against)
