"""Shorter and longer schedules by one key."""

from __future__ import annotations

import pytest
from fixtures.project import ROOT
from pydantic import ValidationError

from ctm_core.config import Experiment, load_experiment, read_yaml
from ctm_core.config.scaled import scaled

FILE = ROOT / "config/experiments/cifar10-hour.yaml"


def hour(scale: float) -> Experiment:
    return Experiment.model_validate(read_yaml(FILE) | {"scale": scale})


def test_schedules_shrink_together() -> None:
    whole, part = hour(1), hour(0.25)
    for model in ("teacher", *whole.models):
        ours, theirs = part.training(model), whole.training(model)
        assert 4 * ours.steps == theirs.steps and 4 * ours.decay_steps == theirs.decay_steps
        assert abs(4 * ours.checkpoint_every - theirs.checkpoint_every) <= 2
        # The average spans the same share of the training.
        assert ours.ema[0] ** ours.steps == pytest.approx(theirs.ema[0] ** theirs.steps)
        assert (ours.batch_size, ours.learning_rate) == (theirs.batch_size, theirs.learning_rate)
    assert part.student("ctm_gan").init_from.step == part.last_step("ctm")


def test_hashes_follow_the_resolved_numbers() -> None:
    part = hour(0.25)
    written = Experiment.model_validate(part.model_dump(mode="json"))
    assert part.scale == written.scale == 1
    for model in ("teacher", *part.models):
        assert part.train_hash(model) == written.train_hash(model) != hour(1).train_hash(model)
    assert hour(1).train_hash("ctm") == load_experiment(FILE).train_hash("ctm")


@pytest.mark.parametrize("scale", [1e-4, 0.003, 0.37])
def test_any_length_is_valid(scale: float) -> None:
    part = hour(scale)
    assert all(part.last_step(model) >= 1 for model in ("teacher", *part.models))


@pytest.mark.parametrize("scale", [0, -1, 1e9, 10**400, "half", True, None])
def test_other_factors_are_refused_and_change_nothing(scale: object) -> None:
    data = read_yaml(FILE) | {"scale": scale}
    assert scaled(data) is data
    with pytest.raises(ValidationError, match="scale"):
        Experiment.model_validate(data)


def test_what_is_wrong_is_left_for_validation() -> None:
    data = {
        "scale": 0.5,
        "teacher": {"training": {"steps": "many", "ema": "slow", "warmup_steps": 0, "keep": 3}},
        "models": {"a": None, "b": {"init_from": 7, "training": {"snapshots": [3, True]}}},
    }
    data["models"]["c"] = {"training": {"steps": 10**400, "warmup_steps": float("nan")}}
    made = scaled(data)
    assert made["teacher"] == data["teacher"]
    assert made["models"]["b"]["training"] == {"snapshots": [2, True]}
    assert made["models"]["c"] == data["models"]["c"]
    assert scaled([1]) == [1] and scaled({"scale": 2, "models": 3})["models"] == 3
