"""A signal that ends a training early: one process receives it, all abandon the same step."""

from __future__ import annotations

import math
import signal
import time

from ctm_core.runtime import distributed

#: Seconds within a step after which several processes ask each other whether one is to stop.
PATIENCE = 5.0


class StopSignal:
    """What a process knows of signals: its own, and whether any process received one.

    Processes exchange it with the terms at the end of a step (:meth:`report`, :meth:`hear`), and
    within a step only if it is long.
    """

    def __init__(self) -> None:
        self.received = 0  #: the signal that this process received
        self.agreed = False  #: whether any process received one, as far as all of them know
        self.pace = math.inf  #: seconds per micro-batch, the mean over processes
        self.begin_step()

    def begin_step(self) -> None:
        """Start to count the micro-batches of a step."""
        self.began = time.monotonic()
        self.ran = self.asked = 0  #: micro-batches of this step: all, and when that was asked

    def remember(self, number: int) -> None:
        """Note a signal; the current step is abandoned at its next micro-batch."""
        self.received = number

    def requested(self) -> bool:
        """Whether to stop before the next micro-batch; the same on all processes."""
        if distributed.count() == 1:
            self.agreed = self.received > 0
        else:
            since = self.ran - self.asked
            if not self.agreed and since and since * self.pace >= PATIENCE:
                self.agreed, self.asked = distributed.any_of(self.received) > 0, self.ran
        self.ran += not self.agreed
        return self.agreed

    def report(self) -> tuple[float, float]:
        """What processes average at the end of a step: the pace, and the signal."""
        return (time.monotonic() - self.began) / max(1, self.ran), float(self.received)

    def hear(self, pace: float, received: float) -> None:
        """Take the averages of what all processes reported."""
        self.pace, self.agreed = pace, received > 0

    def name(self) -> str:
        """The signal's name; called by all processes."""
        return signal.Signals(distributed.any_of(self.received)).name
