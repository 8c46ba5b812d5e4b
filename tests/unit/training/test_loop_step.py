"""One optimiser step: micro-batches, weights, rate and averages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.runtime import distributed
from ctm_core.training import ema
from ctm_core.training.balance import Rule
from ctm_core.training.batches import Batch
from ctm_core.training.loop import Trainer, _Abandoned


class Recorded:
    """An objective that notes its batches and has a known gradient."""

    flips, group = False, 1

    def __init__(self, student: torch.nn.Module) -> None:
        self.student = student
        self.evaluations: dict[str, int] = {}
        self.adversary = None
        self.modules: dict[str, torch.nn.Module] = {}
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


def test_the_exchange_of_terms_says_who_was_told_to_stop(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = trainer(digits, tmp_path)

    def average(values: list[torch.Tensor]) -> None:
        if values[0].ndim == 1 and values[0].dtype == torch.float64:
            values[0][-1] += 7.5  # half of another process's SIGTERM

    monkeypatch.setattr(distributed, "average", average)
    made._step()
    assert made._stop.agreed and made.step == 1 and 0 < made._stop.pace < math.inf
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(_Abandoned):
        made._step()
    assert made.step == 1
