"""Loss terms of a step: on the device until they are read, all at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: A number of the record: a tensor () wherever it was computed, or known to the CPU already.
Term = Tensor | float


def floats(terms: Mapping[str, Term]) -> dict[str, float]:
    """The numbers themselves, read one by one."""
    return {name: float(term) for name, term in terms.items()}


class Terms:
    """The terms of each micro-batch, and a number that is the step's.

    Reading a number from a GPU waits until it has computed everything before it. So there is one
    copy a step, and between :meth:`send` and :meth:`read` more work can be given to the device.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, Term]] = []
        self._sent: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def add(self, terms: Mapping[str, Term]) -> None:
        """The terms of one more micro-batch."""
        self._parts.append(dict(terms))

    def send(self, *more: Tensor) -> None:
        """Begin to copy every term, and further numbers (), to the CPU."""
        waiting = [x for part in self._parts for x in part.values() if isinstance(x, Tensor)]
        numbers = torch.stack([x.detach() for x in (*waiting, *more)])
        self._sent = numbers.to("cpu", non_blocking=True)
        if numbers.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> tuple[dict[str, float], list[float]]:
        """Means of the terms over micro-batches, in float64, and the further numbers."""
        assert self._sent is not None, "nothing was sent"
        if self._copied is not None:
            self._copied.synchronize()
        numbers = self._sent.tolist()[::-1]
        means: dict[str, float] = {}
        for part in self._parts:
            for name, term in part.items():
                value = numbers.pop() if isinstance(term, Tensor) else term
                means[name] = means.get(name, 0.0) + value / len(self._parts)
        return means, numbers[::-1]
