"""Whatever interrupts a training, the same command gives the same bytes."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import FileSizeLimit, KillAt, Trained

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.runtime import checkpoint, devices
from ctm_core.runtime.errors import Diverged, Interrupted
from ctm_core.runtime.files import load_tensors, read_json
from ctm_core.training import adversary, balance, ema, jobs, optimizers
from ctm_core.training.balance import Rule
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import DsmObjective
from ctm_core.training.loop import Trainer
from ctm_core.training.objectives.ctm import CtmObjective

STEPS = tiny.TRAINING["steps"]
EXPORTS = {"teacher": ["teacher.safetensors"]}
EXPORTS["ctm"] = ["snapshot-00000006.safetensors", "student.safetensors"]


class Case:
    """The command of a training, in a folder of its own, and what it must end with."""

    def __init__(
        self,
        model: str,
        folder: Path,
        digits: Dataset,
        teacher: Path,
        undisturbed: Trained,
        base: tiny.Changes | None = None,
    ) -> None:
        self.model, self.folder, self.base = model, folder, base or {}
        self.digits, self.teacher, self.undisturbed = digits, teacher, undisturbed
        tiny.write_experiment(folder / "tiny.yaml", self.base)

    @property
    def run(self) -> Path:
        (run,) = (self.folder / "runs" / "tiny" / self.model / "seed-0").iterdir()
        return run

    def train(self, changes: tiny.Changes | None = None, **options: Any) -> Path:
        """Here and now."""
        given = {"output": self.folder / "out", "runs": self.folder / "runs"} | options
        experiment = tiny.experiment({**self.base, **(changes or {})})
        if self.model == "teacher":
            return jobs.train_teacher(experiment, self.digits, **given)
        return jobs.train_student(
            experiment, self.model, self.digits, self.teacher, seed=0, **given
        )

    def command(self, *before: Callable[[], None]) -> tiny.Ended:
        """As a command in a process of its own."""
        words: list[str | Path] = ["--config", "tiny.yaml", "--data", self.digits.path]
        words += ["--output", "out"]
        if self.model == "teacher":
            return tiny.ctm(["teacher", *words], self.folder, before)
        words += ["--model", self.model, "--teacher", self.teacher]
        return tiny.ctm(["train", *words], self.folder, before)

    def assert_undisturbed(self) -> None:
        """Same weights, each logged step once, and a record that adds up."""
        for name in EXPORTS[self.model]:
            ours = (self.folder / "out" / name).read_bytes()
            assert ours == (self.undisturbed.folder / name).read_bytes(), name
        curve, reference = (
            [json.loads(line) for line in (path / "training.jsonl").open()]
            for path in (self.folder / "out", self.undisturbed.folder)
        )
        assert [line["step"] for line in curve] == list(range(1, STEPS + 1))
        assert curve == reference
        record = read_json(self.folder / "out" / "training.json")
        undisturbed = read_json(self.undisturbed.folder / "training.json")
        assert record == undisturbed | {"code_version": record["code_version"]}
        assert record["exact"] is True
        assert not list(self.run.glob("checkpoints/.*"))


@pytest.fixture(params=["teacher", "ctm"])
def case(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    digits: Dataset,
    teacher: Trained,
    student: Trained,
) -> Case:
    undisturbed = {"teacher": teacher, "ctm": student}[request.param]
    return Case(request.param, tmp_path, digits, teacher.weights, undisturbed)


@pytest.fixture
def ctm_case(tmp_path: Path, digits: Dataset, teacher: Trained, student: Trained) -> Case:
    return Case("ctm", tmp_path, digits, teacher.weights, student)


def steps_of(run: Path) -> list[int]:
    return checkpoint.steps(run / "checkpoints")


def after_steps(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], None]) -> None:
    """Do something in a process's step ``count`` (from 1), once its gradients are there."""
    apply, calls = Trainer._apply, 0

    def counted(self: Trainer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        apply(self, *arguments)

    monkeypatch.setattr(Trainer, "_apply", counted)


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


def stop_after(case: Case, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    after_steps(monkeypatch, count, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        case.train()
    monkeypatch.undo()


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


# -- divergence --------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, term: str, at: int, value: float = math.nan) -> None:
    """Make a loss term something else at a step (from 1)."""
    for kind in (CtmObjective, DsmObjective):
        backward = kind.backward

        def spoilt(
            self: Any, batch: Batch, *arguments: Any, backward: Any = backward
        ) -> dict[str, float]:
            terms: dict[str, float] = backward(self, batch, *arguments)
            if batch.step + 1 == at:
                terms |= {term: value, "loss": value}
            return terms

        monkeypatch.setattr(kind, "backward", spoilt)


@pytest.mark.parametrize(
    ("term", "value"), [("ctm", math.nan), ("dsm", math.inf), ("loss", math.nan)]
)
def test_divergence_names_term_and_step_and_keeps_the_last_checkpoint(
    ctm_case: Case, monkeypatch: pytest.MonkeyPatch, term: str, value: float
) -> None:
    spoil(monkeypatch, term, 7, value)
    with pytest.raises(Diverged) as first:
        ctm_case.train()
    sentence = f"tiny ctm seed 0: the {term} became {value} at step 7 (the checkpoint of step 4 is"
    assert str(first.value).startswith(sentence)
    assert steps_of(ctm_case.run) == [4]
    found = checkpoint.newest(ctm_case.run / "checkpoints")
    assert found is not None
    assert all(bool(t.isfinite().all()) for s in found.sections.values() for t in s.values())
    recorded = read_json(ctm_case.run / "failed.json")
    assert recorded == {"exit_code": 3, "message": str(first.value)}
    monkeypatch.undo()

    def fail() -> None:
        raise AssertionError("a step was trained")

    after_steps(monkeypatch, 1, fail)
    with pytest.raises(Diverged) as again:
        ctm_case.train(attempt=2)
    assert str(again.value) == str(first.value)
    monkeypatch.undo()
    ctm_case.train(attempt=1)
    assert not (ctm_case.run / "failed.json").exists()
    ctm_case.assert_undisturbed()


def test_a_gradient_that_is_not_finite(ctm_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = CtmObjective.backward

    def spoilt(self: CtmObjective, batch: Batch, *arguments: Any) -> dict[str, float]:
        terms = backward(self, batch, *arguments)
        if batch.step == 2:
            gradient = self.student.output_weight.grad
            assert gradient is not None
            gradient[0, 0, 0, 0] = math.inf
        return terms

    monkeypatch.setattr(CtmObjective, "backward", spoilt)
    with pytest.raises(
        Diverged, match=r"gradient norm became inf at step 3 \(no checkpoint yet\)"
    ):
        ctm_case.train()


def test_a_loss_that_overflows_by_itself(ctm_case: Case) -> None:
    """No patch: a learning rate that no network survives."""
    with pytest.raises(Diverged, match=r"became (nan|inf) at step \d+"):
        ctm_case.train({"models.ctm.training.learning_rate": 1e30})


# -- with an adversary -------------------------------------------------------------------------

ADVERSARY: dict[str, Any] = {
    "models.ctm.adversarial": {
        "discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8}
    }
}


@pytest.fixture(scope="module")
def judged(digits: Dataset, teacher: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The student of the tiny experiment, trained with a discriminator."""
    folder = tmp_path_factory.mktemp("judged")
    given: dict[str, Any] = {"output": folder / "out", "runs": folder / "runs", "seed": 0}
    weights = jobs.train_student(
        tiny.experiment(ADVERSARY), "ctm", digits, teacher.weights, **given
    )
    return Trained(weights, next((folder / "runs" / "tiny" / "ctm" / "seed-0").iterdir()))


@pytest.fixture
def gan_case(tmp_path: Path, digits: Dataset, teacher: Trained, judged: Trained) -> Case:
    return Case("ctm", tmp_path, digits, teacher.weights, judged, ADVERSARY)


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


def spoil_result(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, value: float
) -> None:
    """Multiply what a function returns at its n-th call (from 1) by NaN or infinity."""
    original, calls = getattr(owner, name), 0

    def spoilt(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*arguments, **named)
        if calls != call:
            return result
        if isinstance(result, tuple):
            return (result[0] * value, *result[1:])
        return result * value

    monkeypatch.setattr(owner, name, spoilt)


@pytest.mark.parametrize(
    ("owner", "name", "call", "value", "term", "step"),
    [
        (balance, "adaptive_weight", 5, math.nan, "lambda_gan", 5),
        (balance, "adaptive_weight", 6, math.inf, "lambda_dsm", 5),
        (CtmObjective, "denoising", 3, math.nan, "dsm", 5),
        (adversary.Adversary, "generator_loss", 3, math.inf, "gan", 5),
        (adversary, "hinge_discriminator", 3, math.inf, "d_loss", 6),
        (adversary.Adversary, "_logits", 9, math.nan, "d_loss", 6),  # of generated images
    ],
)
def test_each_term_of_both_phases_is_guarded(
    gan_case: Case,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    value: float,
    term: str,
    step: int,
) -> None:
    """The very numbers become NaN or infinite, not their record."""
    spoil_result(monkeypatch, owner, name, call, value)
    if name == "hinge_discriminator":
        losses = (adversary.hinge_generator, adversary.hinge_discriminator)
        monkeypatch.setitem(adversary.LOSSES, "hinge", losses)
    with pytest.raises(Diverged, match=rf"the {term} became -?(nan|inf) at step {step} \(the"):
        gan_case.train()
    assert steps_of(gan_case.run) == [4]
    found = checkpoint.newest(gan_case.run / "checkpoints")
    assert found is not None
    assert all(bool(t.isfinite().all()) for s in found.sections.values() for t in s.values())
    assert read_json(gan_case.run / "failed.json")["exit_code"] == 3


def test_weights_that_overflow_are_not_saved(ctm_case: Case) -> None:
    """A step may have finite losses and gradients, and still leave no finite weights."""
    with pytest.raises(Diverged, match=r"norm of the weights became (inf|nan) at step 1 \(no"):
        ctm_case.train(
            {"models.ctm.training.learning_rate": 1e38, "models.ctm.training.checkpoint_every": 1}
        )
    assert steps_of(ctm_case.run) == []


# -- the step ----------------------------------------------------------------------------------


class Recorded:
    """An objective that notes its batches and has a known gradient."""

    flips = False

    def __init__(self, student: torch.nn.Module) -> None:
        self.student = student
        self.evaluations: dict[str, int] = {}
        self.adversary = None
        self.batches: list[tuple[Batch, float, torch.Tensor]] = []

    def backward(self, batch: Batch, share: float, *weights: Any) -> dict[str, float]:
        self.batches.append((batch, share, torch.rand(1)))  # the generator dropout draws from
        value = batch.images.mean() * sum(p.sum() for p in self.student.parameters())
        (share * value).backward()
        return {"loss": float(value.detach())}


class FakeRun:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def confirm(self) -> None:
        pass


def trainer(
    digits: Dataset,
    tmp_path: Path,
    objective: Any = None,
    lambda_scope: str = "microbatch",
    **section: Any,
) -> tuple[Trainer, Recorded]:
    student: Any = torch.nn.Linear(2, 1)
    recorded = Recorded(student)
    made = Trainer(
        title="t",
        section=Training.model_validate({"steps": 10, "batch_size": 8, "ema": [0.5]} | section),
        objective=objective or recorded,
        student=student,
        averages={0.5: ema.frozen_copy(student)},
        dataset=digits,
        labels=True,
        seed=3,
        run=FakeRun(tmp_path),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        lambda_scope=lambda_scope,
    )
    return made, recorded


def test_batches_do_not_depend_on_their_splitting(digits: Dataset, tmp_path: Path) -> None:
    whole, of_whole = trainer(digits, tmp_path)
    split, of_split = trainer(digits, tmp_path, micro_batch=2)
    split.student.load_state_dict(whole.student.state_dict())
    for _ in range(3):
        ours, theirs = whole._step(), split._step()
        assert ours == pytest.approx(theirs, rel=1e-5)
        for p, q in zip(whole.student.parameters(), split.student.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
            torch.testing.assert_close(p, q)
    assert [share for _, share, _ in of_split.batches] == [0.25] * 12
    assert [batch.start for batch, _, _ in of_split.batches] == [0, 2, 4, 6] * 3
    for step, (batch, share, _) in enumerate(of_whole.batches):
        parts = [b for b, _, _ in of_split.batches[4 * step : 4 * step + 4]]
        assert share == 1.0
        assert {b.step for b in parts} == {batch.step} == {step}
        assert torch.equal(batch.images, torch.cat([b.images for b in parts]))
        assert batch.labels is not None
        assert torch.equal(batch.labels, torch.cat([b.labels for b in parts]))  # type: ignore[misc]


def test_torchs_generator_is_set_before_each_forward(digits: Dataset, tmp_path: Path) -> None:
    made, recorded = trainer(digits, tmp_path, micro_batch=4)
    made._step()
    torch.rand(17)  # whatever happens between steps
    made._step()
    again, recorded_again = trainer(digits, tmp_path, micro_batch=4)
    again.step = 1
    again._step()
    drawn = [float(value) for _, _, value in recorded.batches]
    assert len(set(drawn)) == 4
    assert [float(value) for _, _, value in recorded_again.batches] == drawn[2:]


@pytest.mark.parametrize(
    ("adaptive", "micro_batch", "passes"), [(True, 2, 4), (True, 8, 0), (False, 2, 0)]
)
def test_a_pass_for_the_weights_is_made_only_where_it_is_needed(
    digits: Dataset, tmp_path: Path, adaptive: bool, micro_batch: int, passes: int
) -> None:
    """The whole batch's weights need a pass of their own if it is cut and a weight is adaptive."""
    made, recorded = trainer(digits, tmp_path, micro_batch=micro_batch, lambda_scope="global")
    measured: list[Batch] = []

    def gradients_at_w(batch: Batch) -> dict[str, torch.Tensor]:
        measured.append(batch)
        ones = torch.ones(2)
        return {"ctm": ones, "dsm": 2 * ones}

    recorded.gradients_at_w = gradients_at_w  # type: ignore[attr-defined]
    recorded.rules = lambda: {"dsm": Rule(1.0, adaptive=adaptive)}  # type: ignore[attr-defined]
    made._step()
    assert [batch.start for batch in measured] == list(range(0, 2 * passes, 2))
    assert len(recorded.batches) == 8 // micro_batch


def test_the_rate_of_each_step_reaches_the_optimiser(digits: Dataset, tmp_path: Path) -> None:
    made, _ = trainer(digits, tmp_path, warmup_steps=4, decay_steps=5, learning_rate=0.1)
    made.step = 7
    made._step()
    assert [group["lr"] for group in made.optimizer.param_groups] == [pytest.approx(0.06)]


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("radam", torch.optim.RAdam)]
)
def test_optimiser_and_average_follow_the_plain_recursion(
    digits: Dataset, tmp_path: Path, name: str, kind: type[torch.optim.Optimizer]
) -> None:
    made, recorded = trainer(digits, tmp_path, optimizer=name, learning_rate=0.05)
    weights = [p.detach().clone().requires_grad_() for p in made.student.parameters()]
    plain = kind(weights, lr=0.05)  # type: ignore[call-arg]
    average = [w.detach().clone() for w in weights]
    for _ in range(8):
        made._step()
        batch, _, _ = recorded.batches[-1]
        plain.zero_grad()
        (batch.images.mean() * sum(w.sum() for w in weights)).backward()  # type: ignore[union-attr]
        plain.step()
        average = [0.5 * a + 0.5 * w.detach() for a, w in zip(average, weights, strict=True)]
    for ours, theirs in zip(made.student.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, mean in zip(made.averages[0.5].parameters(), average, strict=True):
        torch.testing.assert_close(ours, mean)


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
