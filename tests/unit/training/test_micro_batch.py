"""`micro_batch: auto`: what fits, once per run, and only where it changes rounding alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.one_step import Lab
from fixtures.sections import shows

from ctm_core.data.dataset import Dataset
from ctm_core.runtime import memory
from ctm_core.runtime.errors import Interrupted, UserError
from ctm_core.runtime.files import read_record, write_record
from ctm_core.training import micro_batch
from ctm_core.training.loop import Trainer

AUTO = {"teacher.training.micro_batch": "auto"}
TRAINING = "models.ctm.training"


@pytest.fixture(scope="module")
def lab(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), digits)


def limit(monkeypatch: pytest.MonkeyPatch, samples: float) -> None:
    """Memory for a number of samples."""
    monkeypatch.setattr(micro_batch, "_activation_bytes", lambda *_: 1000)
    monkeypatch.setattr(memory, "available", lambda device: int(2000 * samples))


@shows("Training.micro_batch")
@pytest.mark.parametrize(("samples", "size"), [(100, 8), (7.5, 4), (3, 2), (0.1, 1)])
def test_as_many_as_fit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, samples: float, size: int
) -> None:
    limit(monkeypatch, samples)
    made = lab.train("teacher", AUTO)
    assert [len(batch) for batch in made.batches] == [size] * (2 * 8 // size)
    assert made.record["micro_batch"] == size and "micro_batch" not in lab.plain.record
    assert made.record["forward_passes"] == lab.plain.record["forward_passes"]
    for name, gradient in made.gradients[0].items():
        torch.testing.assert_close(gradient, lab.plain.gradients[0][name], rtol=1e-4, atol=1e-6)


def test_a_run_keeps_what_it_began_with(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"runs": tmp_path, "run": tmp_path / "run"}
    limit(monkeypatch, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", _interrupted)
        with pytest.raises(Interrupted):
            lab.train("teacher", AUTO, **place)
    limit(monkeypatch, 100)
    made = lab.train("teacher", AUTO, **place)
    assert {len(batch) for batch in made.batches} == {2}
    file = tmp_path / "run" / "micro_batch.json"
    assert read_record(file)["micro_batch"] == 2
    write_record(file, {"micro_batch": "many"})
    with pytest.raises(UserError, match=r"micro_batch.json is corrupt: expected a number"):
        lab.train("teacher", AUTO, **place)


def _interrupted(*_: Any) -> None:
    raise Interrupted("stopped")


def test_it_is_hashed_as_auto() -> None:
    plain, auto = tiny.experiment(), tiny.experiment(AUTO)
    assert auto.train_hash("teacher") != plain.train_hash("teacher")
    assert auto.resolved("fp32").train_hash("teacher") == auto.train_hash("teacher")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "lambda is of one micro-batch"),
        ({f"{TRAINING}.accumulation": "sum", "models.ctm.lambda_scope": "global"}, "a sum"),
        (tiny.ADVERSARIAL, "batch norm sees one micro-batch"),
    ],
)
def test_it_is_refused_where_micro_batches_are_mathematics(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"auto.*{reason}|{reason}.*auto"):
        tiny.experiment({f"{TRAINING}.micro_batch": "auto"} | changes)


def test_it_is_allowed_where_they_are_not() -> None:
    for changes in (
        {"models.ctm.lambda_scope": "global"},
        {"models.ctm.dsm": {"adaptive": False}},
    ):
        made = tiny.experiment({f"{TRAINING}.micro_batch": "auto"} | changes)
        assert made.training("ctm").shared(2) == (4, 4)


def test_what_autograd_keeps_grows_with_the_batch_and_the_trial_leaves_no_trace(lab: Lab) -> None:
    trainer = lab.plain.trainer
    before = dict(trainer.objective.evaluations)
    one, two = (
        micro_batch._activation_bytes(trainer.objective, trainer.batches.draw(0, 0, n))
        for n in (1, 2)
    )
    assert 1.5 * one < two < 2.5 * one and one > 10_000
    assert trainer.objective.evaluations == before
    assert all(p.grad is None for p in trainer.student.parameters())


@pytest.mark.parametrize(("largest", "tried"), [(2, [1, 8, 4, 2]), (0, [1, 8, 4, 2, 1])])
def test_where_memory_runs_out_after_all_less_is_taken(
    largest: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def attempt(objective: Any, batch: Any) -> None:
        seen.append(len(batch))
        if len(seen) > 1 and len(batch) > largest:  # the first is of one sample, to measure it
            raise torch.OutOfMemoryError

    monkeypatch.setattr(micro_batch, "_try", attempt)
    monkeypatch.setattr(micro_batch.memory, "available", lambda device: 10**9)
    weight = SimpleNamespace(device=torch.device("cuda"))
    objective: Any = SimpleNamespace(group=1, student=SimpleNamespace(output_weight=weight))
    draw: Any = range  # of so many samples
    if largest:
        assert micro_batch.choose(objective, draw, 8) == largest
    else:
        with pytest.raises(UserError, match="no room for a single sample"):
            micro_batch.choose(objective, draw, 8)
    assert seen == tried


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "5", 2048), ("1500", "1000", 500), ("900", "1000", 0), (None, None, 2048)],
)
def test_available_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str | None,
    used: str | None,
    expected: int,
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    2 kB\n")
    (tmp_path / "own").write_text("0::/job/step\n")
    group = tmp_path / "groups" / "job" / "step"
    group.mkdir(parents=True)
    for name, value in (("max", limit), ("current", used)):
        if value is not None:
            (group / f"memory.{name}").write_text(f"{value}\n")
    for name, path in (("MEMINFO", "meminfo"), ("OWN_GROUP", "own"), ("GROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / path)
    assert memory.available(torch.device("cpu")) == expected
