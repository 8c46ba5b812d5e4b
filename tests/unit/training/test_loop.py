"""Whatever interrupts a training, the same command gives the same bytes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny import KillAt, Trained
from fixtures.trainings import STEPS, Case, after_steps, steps_of, stop_after

from ctm_core.data.dataset import Dataset
from ctm_core.runtime import devices
from ctm_core.runtime.errors import Interrupted
from ctm_core.runtime.files import load_tensors, read_json
from ctm_core.training import optimizers
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective

# -- interruptions -----------------------------------------------------------------------------


def test_an_exception(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a cable was pulled")

    after_steps(monkeypatch, 7, fail)
    with pytest.raises(RuntimeError, match="cable"):
        case.train()
    monkeypatch.undo()
    assert steps_of(case.run) == [4]
    assert not (case.folder / "out").exists()
    case.train()
    case.assert_undisturbed()
    assert read_json(case.run / "run.json")["starts"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_after_the_step_with_a_checkpoint(
    ctm_case: Case, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    after_steps(monkeypatch, 7, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=rf"stopped by {number.name} after step 7; run the same"):
        ctm_case.train()
    monkeypatch.undo()
    now = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert now == handlers
    assert steps_of(ctm_case.run) == [4, 7]
    assert not (ctm_case.run / "failed.json").exists()
    ctm_case.train()
    ctm_case.assert_undisturbed()


def test_a_signal_between_micro_batches_drops_the_step(
    ctm_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"models.ctm.training.micro_batch": 2}
    whole = ctm_case.train(changes, runs=tmp_path / "whole", output=tmp_path / "whole" / "out")
    backward, calls = CtmObjective.backward, 0

    def counted(self: CtmObjective, batch: Batch, *arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4 * 6 + 2:  # the second micro-batch of the seventh step
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, batch, *arguments)

    monkeypatch.setattr(CtmObjective, "backward", counted)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 6"):
        ctm_case.train(changes)
    assert calls == 4 * 6 + 2
    monkeypatch.undo()
    parts = ctm_case.train(changes)
    assert parts.read_bytes() == whole.read_bytes()
    records = [read_json(path.parent / "training.json") for path in (parts, whole)]
    assert records[0]["forward_passes"] == records[1]["forward_passes"]


def test_a_signal_in_the_last_step_comes_too_late(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_steps(monkeypatch, STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM))
    case.train()
    case.assert_undisturbed()


def test_kill_9_again_and_again(case: Case) -> None:
    """In steps, within and between the files of a checkpoint, on export and on delivery."""
    step = "ctm_core.training.loop:Trainer._step"
    for place, count in (
        (step, 3),  # before the first checkpoint
        ("ctm_core.runtime.checkpoint:write_record", 1),  # within it
        ("os:rename", 1),  # it is whole and about to appear
        (step, 7),  # after the snapshot, before the second checkpoint
        ("ctm_core.runtime.checkpoint:prune", 1),
        ("ctm_core.training.jobs:_Job.deliver", 1),
        ("shutil:copyfile", 2),
    ):
        ended = case.command(KillAt(place, count))
        assert ended.code == -signal.SIGKILL, (place, count, ended)
        assert "Traceback" not in ended.stderr
        if place in ("ctm_core.runtime.checkpoint:write_record", "os:rename"):
            assert list(case.run.glob("checkpoints/.step-00000004.partial/*"))
    ended = case.command()
    assert ended.code == 0, ended.stderr
    case.assert_undisturbed()


def test_sigterm_to_the_command(ctm_case: Case) -> None:
    ended = ctm_case.command(TermAt(5))
    assert ended.code == 75
    assert ended.stderr.splitlines()[-1].startswith(
        "ctm: tiny ctm seed 0 stopped by SIGTERM after"
    )
    assert "Traceback" not in ended.stderr
    assert ctm_case.command().code == 0
    ctm_case.assert_undisturbed()


class TermAt:
    """SIGTERM in the middle of a step."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self) -> None:
        after_steps(pytest.MonkeyPatch(), self.count, lambda: os.kill(os.getpid(), signal.SIGTERM))


# -- damage ------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_after(case, monkeypatch, 9)
    assert steps_of(case.run) == [8, 9]
    file = case.run / "checkpoints" / "step-00000009" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    case.train()
    assert "skipping a corrupt checkpoint" in caplog.text
    assert "step-00000009" in caplog.text
    case.assert_undisturbed()


def test_every_checkpoint_truncated(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_after(case, monkeypatch, 9)
    for file in case.run.glob("checkpoints/*/student.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    case.train()
    assert caplog.text.count("skipping a corrupt checkpoint") == 2
    case.assert_undisturbed()


def test_a_torn_line_of_the_curve(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(case, monkeypatch, 9)
    with open(case.run / "training.jsonl", "a") as file:
        file.write('{"step": 10, "lo')
    case.train()
    case.assert_undisturbed()


# -- exports -----------------------------------------------------------------------------------


def test_a_lost_snapshot_is_made_again_even_if_killed_on_the_way(
    ctm_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going back forgets the later checkpoints: the curve has no gap where they would resume."""
    ctm_case.train()
    assert steps_of(ctm_case.run) == [8, 12]
    (ctm_case.run / "exports" / "snapshot-00000006.safetensors").unlink()
    shutil.rmtree(ctm_case.folder / "out")

    def fail() -> None:
        raise RuntimeError

    after_steps(monkeypatch, 7, fail)  # step 7: the snapshot exists, checkpoint 8 not again
    with pytest.raises(RuntimeError):
        ctm_case.train()
    monkeypatch.undo()
    assert steps_of(ctm_case.run) == [4]
    ctm_case.train()
    ctm_case.assert_undisturbed()


def test_snapshots_asked_for_afterwards(ctm_case: Case, student: Trained) -> None:
    ctm_case.train({"models.ctm.training.snapshots": [2]})
    snapshot = ctm_case.folder / "out" / "snapshot-00000002.safetensors"
    early = snapshot.read_bytes()
    ctm_case.train()
    ctm_case.assert_undisturbed()
    assert snapshot.read_bytes() == early


def test_a_finished_run_is_delivered_again_without_training(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.train()
    shutil.rmtree(case.folder / "out")

    def fail() -> None:
        raise AssertionError("a step was trained")

    after_steps(monkeypatch, 1, fail)
    case.train()
    case.assert_undisturbed()


@pytest.mark.parametrize("model", ["teacher", "ctm"])
def test_what_is_not_hashed_changes_nothing(
    tmp_path: Path, digits: Dataset, teacher: Trained, student: Trained, model: str
) -> None:
    made = Case(
        model, tmp_path, digits, teacher.weights, {"teacher": teacher, "ctm": student}[model]
    )
    section = "teacher" if model == "teacher" else "models.ctm"
    made.train(
        {
            f"{section}.training.keep": 1,
            f"{section}.training.checkpoint_every": 5,
            f"{section}.training.preview_every": 3,
        }
    )
    made.assert_undisturbed()
    previews = sorted(path.name for path in (made.run / "previews").iterdir())
    assert previews == [f"step-{step:08d}.png" for step in (3, 6, 9, 12)]
    assert steps_of(made.run) == [12]


def test_channels_last_resumes_exactly_too(
    ctm_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"models.ctm.training.channels_last": True, "models.ctm.training.snapshots": []}
    whole = ctm_case.train(changes, runs=tmp_path / "whole", output=tmp_path / "whole" / "out")
    after_steps(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        ctm_case.train(changes)
    monkeypatch.undo()
    layouts = []
    original = optimizers.restore

    def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
        original(optimizer, tensors)
        for parameter, state in optimizer.state.items():
            layouts.append(state["exp_avg"].stride() == parameter.stride())

    monkeypatch.setattr(optimizers, "restore", restore)
    parts = ctm_case.train(changes)
    assert layouts and all(layouts)
    assert parts.read_bytes() == whole.read_bytes()


def test_bf16_trains_and_differs(ctm_case: Case, student: Trained) -> None:
    weights = ctm_case.train(
        {"models.ctm.training.precision": "bf16", "models.ctm.training.snapshots": []}
    )
    low, high = load_tensors(weights)[0], load_tensors(student.weights)[0]
    assert all(value.dtype == torch.float32 for value in low.values())
    assert any(not torch.equal(low[name], high[name]) for name in high)


def test_the_run_folder_says_what_auto_became_and_why(
    ctm_case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"models.ctm.training.precision": "auto", "models.ctm.training.snapshots": []}
    for units, precision in ((None, "fp32"), ("avx512_bf16", "bf16")):
        monkeypatch.setattr(devices, "bf16_units", lambda device, units=units: units)
        caplog.clear()
        ctm_case.train(changes)
        [kept] = [
            made["auto"]
            for file in (ctm_case.folder / "runs").rglob("config.json")
            if (made := json.loads(file.read_text(encoding="utf-8")))["model"] == "ctm"
            and made["configuration"]["models"]["ctm"]["training"]["precision"] == precision
        ]
        assert kept == {"precision": precision, "bf16_units": units}
        # The second machine says where the first one's training is.
        assert ("was begun in fp32" in caplog.text) == (precision == "bf16")


def test_off_the_main_thread_signals_are_left_alone(ctm_case: Case) -> None:
    import threading

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ctm_case.train)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    ctm_case.assert_undisturbed()


def test_resume_says_where_it_continues(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_after(case, monkeypatch, 5)
    with caplog.at_level(logging.INFO):
        case.train()
    assert "continues after step 5" in caplog.text
