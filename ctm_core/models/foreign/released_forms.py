"""Weights of released MeanFlow and IMM networks as those of our networks of the same layers."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

#: How a tensor changes, by our name of it; the others stay as they are.
Change = Callable[[str, Tensor], Tensor]


def meanflow(name: str, value: Tensor) -> Tensor:
    """Attention's channels in thirds, all q, all k, all v, become (channel, {q, k, v})."""
    if not re.search(r"\.qkv\.(weight|bias)$", name):
        return value
    return value.view(3, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)


def imm(name: str, value: Tensor) -> Tensor:
    """IMM's network yields the negative of our F."""
    return -value if re.search(r"_aux_conv\.(weight|bias)$", name) else value


#: By method.
CHANGES: dict[str, Change] = {"meanflow": meanflow, "imm": imm}
#: sigma = sigma_data t / (1 - t) of IMM's first and last time.
IMM_LEVELS = {"sigma_min": 0.5 * 0.006 / 0.994, "sigma_max": 0.5 * 0.994 / 0.006}
