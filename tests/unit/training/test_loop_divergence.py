"""What is not finite ends a training and is never saved."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fixtures.trainings import Case, after_steps, steps_of

from ctm_core.runtime import checkpoint
from ctm_core.runtime.errors import Diverged
from ctm_core.runtime.files import read_json
from ctm_core.training import adversary, balance
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import DsmObjective
from ctm_core.training.objectives.ctm import CtmObjective


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
