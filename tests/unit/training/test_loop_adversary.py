"""Trainings with a discriminator survive interruptions and damage in either phase."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import FileSizeLimit, Trained
from fixtures.trainings import STEPS, Case, steps_of, stop_after

from ctm_core.runtime import checkpoint
from ctm_core.runtime.errors import Interrupted
from ctm_core.training import adversary


@pytest.mark.parametrize("step", [7, 8], ids=["generator", "discriminator"])
def test_a_signal_in_either_phase(
    gan_case: Case, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    stop_after(gan_case, monkeypatch, step)
    assert steps_of(gan_case.run)[-1] == step
    gan_case.train()
    gan_case.assert_undisturbed()


def test_a_signal_within_a_discriminator_step_drops_it(
    gan_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics that its first micro-batch has moved go back."""
    changes = {"models.ctm.training.micro_batch": 4}
    given = {"runs": tmp_path / "whole", "output": tmp_path / "whole" / "out"}
    whole = gan_case.train(changes, **given)
    original, calls = adversary.Adversary.discriminator_loss, 0

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 * 3 + 1:  # the first micro-batch of the eighth step
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *arguments)

    monkeypatch.setattr(adversary.Adversary, "discriminator_loss", counted)
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 after step 7"):
        gan_case.train(changes)
    monkeypatch.undo()
    parts = gan_case.train(changes)
    assert parts.read_bytes() == whole.read_bytes()
    states = [
        checkpoint.read(next(folder.glob("tiny/ctm/seed-0/*/checkpoints")), STEPS)
        for folder in (tmp_path / "runs", tmp_path / "whole")
    ]
    for name, value in states[0].sections["discriminator"].items():
        assert torch.equal(value, states[1].sections["discriminator"][name]), name


@pytest.mark.parametrize("section", ["discriminator", "discriminator_optimizer"])
def test_a_damaged_discriminator(
    gan_case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, section: str
) -> None:
    stop_after(gan_case, monkeypatch, 10)
    assert steps_of(gan_case.run) == [8, 10]
    file = gan_case.run / "checkpoints" / "step-00000010" / f"{section}.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    gan_case.train()
    assert f"{section}.safetensors is corrupt" in caplog.text
    gan_case.assert_undisturbed()


def test_no_room_for_the_discriminator(gan_case: Case, judged: Trained) -> None:
    """From the second checkpoint on, the largest of its files does not fit."""
    sizes = {p.name: p.stat().st_size for p in judged.run.glob("checkpoints/step-00000008/*")}
    largest = max(sizes, key=lambda name: sizes[name])
    assert largest.startswith("discriminator")
    ended = gan_case.command(LimitAt(2, sizes[largest] - 1))
    assert ended.code == 2, ended
    assert largest in ended.stderr and "the limit on file sizes is reached" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert steps_of(gan_case.run) == [4]
    assert gan_case.command().code == 0
    gan_case.assert_undisturbed()


class LimitAt:
    """A limit on file sizes from the n-th checkpoint on."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.limit = count, FileSizeLimit(size)

    def __call__(self) -> None:
        tiny.at_calls("ctm_core.runtime.checkpoint:save", self._act)

    def _act(self, call: int) -> None:
        if call == self.count:
            self.limit()
