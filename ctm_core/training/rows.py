"""The rows of a batch on which a map is evaluated.

On the others the map is the identity, so they are left out. Which they are is known on the CPU,
where times are drawn: nothing is read back from the device.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

#: Row counts of a compiled network, as shares of the batch: any other count is padded to the next.
#: Every new count would be compiled, or captured as a CUDA graph, anew.
SHARES = 4


class Rows:
    """Some rows of a batch, by a mask (B,) on the CPU.

    With ``padded`` the last of them is repeated up to one of a few fixed counts, and what is
    computed of the repetitions is dropped.
    """

    def __init__(self, mask: Tensor, device: torch.device, *, padded: bool = False) -> None:
        rows = mask.nonzero().flatten()
        self.count, self.whole = len(rows), len(rows) == len(mask)
        if padded and self.count:
            step = -(-len(mask) // SHARES)
            missing = min(-(-self.count // step) * step, len(mask)) - self.count
            rows = torch.cat([rows, rows[-1:].expand(missing)])
        self._here, self._there = rows, rows
        if not self.whole:
            self._there = send(rows, device)

    def __len__(self) -> int:
        return self.count

    @overload
    def of(self, x: Tensor) -> Tensor: ...
    @overload
    def of(self, x: Tensor | None) -> Tensor | None: ...
    def of(self, x: Tensor | None) -> Tensor | None:
        """These rows of a tensor (B, …) that is on the CPU or on the device; None stays None."""
        if x is None or self.whole:
            return x
        return x[self._here if x.device == self._here.device else self._there]

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """A copy of ``x`` (B, …) with ``values`` in these rows."""
        values = values.to(x.dtype)
        if self.whole:
            return values
        return x.index_copy(0, self._there[: self.count], values[: self.count])


def send(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on a device, without waiting for the copy."""
    return x.to(device, non_blocking=True)
