"""Processes that learn of a signal, and when they ask each other whether one received it."""

from __future__ import annotations

import math

import pytest

from ctm_core.runtime import distributed
from ctm_core.training.stop_signal import StopSignal


def test_processes_ask_each_other_to_stop_only_where_a_step_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a step; at its end they know it from the exchange of its terms."""
    stop = StopSignal()
    asked: list[int] = []
    monkeypatch.setattr(distributed, "any_of", lambda received: asked.append(stop.ran) or 15)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    answers = []
    # Seconds per micro-batch: unknown, a GPU's, and a processor's.
    for pace, expected in ((math.inf, [1]), (0.01, []), (2.0, [3])):
        asked.clear()
        stop.hear(pace, 0)
        stop.begin_step()
        answers += [stop.requested() for _ in range(4)]
        assert asked == expected, pace
        assert stop.agreed == bool(expected)
    assert answers == [False, True, True, True, *4 * [False], False, False, False, True]


def test_one_process_knows_its_signal_at_once() -> None:
    stop = StopSignal()
    assert not stop.requested() and stop.ran == 1
    stop.remember(15)
    assert stop.requested() and stop.ran == 1
    assert stop.name() == "SIGTERM"
