"""An experiment: its cells, what its hashes cover, and where its models come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.experiments import ANY, CTM, section, sentence, with_model

from ctm_core.config import Cell, Experiment, Released
from ctm_core.runtime.errors import UserError

# -- cells ---------------------------------------------------------------------------------------


def test_gamma_is_empty_at_one_evaluation() -> None:
    experiment = tiny.experiment()
    assert experiment.cells("ctm") == [
        Cell("gamma", 1, None),
        Cell("gamma", 2, 0.0),
        Cell("gamma", 2, 1.0),
    ]
    assert experiment.cells("teacher") == [Cell("heun", 3, None)]
    assert Cell("gamma", 2, 0.5).label == "gamma/nfe-2/gamma-0.5"
    assert Cell("heun", 3, None).label == "heun/nfe-3/gamma-none"
    assert Cell("gamma", 3, 1.0, (20.0, 0.8)).label == "gamma/nfe-3/gamma-1/times-20_0.8"


def test_protocols_choose_cells() -> None:
    experiment = tiny.experiment()
    assert experiment.protocols("teacher") == {"tiny": [Cell("heun", 3, None)]}
    assert experiment.protocols("ctm") == {
        "tiny": experiment.cells("ctm"),
        "tiny-pooled": [Cell("gamma", 2, 1.0)],
    }


def test_cells_of_the_last_step_alone() -> None:
    grids = [
        {"sampler": "gamma", "nfe": [1], "gamma": [0]},
        {"sampler": "gamma", "nfe": [2], "gamma": [0, 1], "steps": "last"},
    ]
    made = tiny.experiment({"evaluation.samplers.ctm": grids})
    assert made.cells("ctm", 6) == [Cell("gamma", 1, None)]
    assert made.cells("ctm", 12) == made.cells("ctm") and len(made.cells("ctm")) == 3
    assert made.protocols("ctm", 6) == {"tiny": [Cell("gamma", 1, None)]}
    assert set(made.protocols("ctm", 12)) == {"tiny", "tiny-pooled"}
    assert made.evaluation_hash("ctm", 6) != made.evaluation_hash("ctm", 12)
    assert made.evaluation_hash("ctm", 12) == made.evaluation_hash("ctm")


def test_runs_and_unknown_students() -> None:
    experiment = tiny.experiment({"seeds": [3, 5]})
    assert list(experiment.runs()) == [("teacher", 0), ("ctm", 3), ("ctm", 5)]
    with pytest.raises(UserError, match="has no student 'cd'; its students are ctm"):
        experiment.training("cd")


# -- hashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.keep", 7),
        ("training.snapshots", [2]),
        ("training.log_every", 3),
        ("training.preview_every", 2),
        ("training.checkpoint_every", 5),
    ],
)
def test_what_cannot_change_weights_is_not_hashed(key: str, value: Any) -> None:
    plain = tiny.experiment()
    changed = tiny.experiment({f"teacher.{key}": value, f"{CTM}.{key}": value})
    assert changed != plain
    for model in ("teacher", "ctm"):
        assert changed.train_hash(model) == plain.train_hash(model)


def test_where_files_came_from_is_not_hashed() -> None:
    plain = {"dataset.name": "fashion-mnist"}
    changed = tiny.experiment({**plain, "dataset.source": "/some/folder", "threads": 2})
    assert changed.train_hash("ctm") == tiny.experiment(plain).train_hash("ctm")


@pytest.mark.parametrize(
    ("key", "value", "models"),
    [
        ("dataset.name", "fashion-mnist", {"teacher", "ctm"}),
        ("conditional", False, {"teacher", "ctm"}),
        ("network.dropout", 0.0, {"teacher", "ctm"}),
        ("diffusion", {"sigma_min": 0.003}, {"teacher", "ctm"}),
        ("teacher.training.steps", 13, {"teacher", "ctm"}),
        ("teacher.p_std", 1.0, {"teacher", "ctm"}),
        (f"{CTM}.training.learning_rate", 1e-3, {"ctm"}),
        (f"{CTM}.training.micro_batch", 4, {"ctm"}),
        (f"{CTM}.target_ema", 0.7, {"ctm"}),
        (f"{CTM}.matching", "local", {"ctm"}),
        (f"{CTM}.variant", "printed", {"ctm"}),
        ("evaluation.batch_size", 32, set()),
        ("seeds", [0, 1], set()),
    ],
)
def test_what_decides_weights_is_hashed(key: str, value: Any, models: set[str]) -> None:
    plain, changed = tiny.experiment(), tiny.experiment({key: value})
    differing = {m for m in ("teacher", "ctm") if plain.train_hash(m) != changed.train_hash(m)}
    assert differing == models


def test_evaluation_hash() -> None:
    plain = tiny.experiment()
    for key, value in (
        ("evaluation.batch_size", 32),
        ("evaluation.sample_seeds", [1]),
        ("evaluation.sampling_precision", "bf16"),
        ("evaluation.samplers.ctm", [{"sampler": "gamma", "nfe": [2], "gamma": [1]}]),
    ):
        assert tiny.experiment({key: value}).evaluation_hash("ctm") != plain.evaluation_hash("ctm")
    longer = tiny.experiment({"teacher.training.steps": 13})
    assert longer.evaluation_hash("ctm") == plain.evaluation_hash("ctm")


def test_cells_on_the_grid_keep_their_hashes() -> None:
    """As they were before cells had times of their own."""
    made = tiny.experiment()
    assert made.evaluation_hash("ctm").startswith("ba1c050dfe5d4f906dddeb38")
    assert made.evaluation_hash("teacher").startswith("0ed2d20166b1624234538")
    cell = Cell("gamma", 2, 1.0)
    assert json.dumps([cell.key, cell.record]) == (
        '[["gamma", 2, 1.0], {"sampler": "gamma", "gamma": 1.0, "nfe": 2}]'
    )


# -- teachers, forks, released models ------------------------------------------------------------


WITHOUT_TEACHER = {"teacher": None, "evaluation.samplers.teacher": None}


def test_a_scratch_experiment_has_no_teacher() -> None:
    made = tiny.experiment({f"{CTM}.objective": "ctm_scratch", **WITHOUT_TEACHER})
    assert list(made.runs()) == [("ctm", 0)]
    assert not made.student("ctm").uses_teacher and not made.trains_teacher
    with pytest.raises(UserError, match="the experiment tiny has no teacher"):
        made.training("teacher")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (WITHOUT_TEACHER, "models.ctm learns from a teacher, but the experiment has none"),
        (
            {f"{CTM}.objective": "ctm_scratch", f"{CTM}.initial": "teacher", **WITHOUT_TEACHER},
            "models.ctm starts from a teacher, but the experiment has none",
        ),
        ({"teacher": {"seed": 1}}, "teacher: a teacher has either `training` or `asset`"),
        (
            {"teacher": {"training": tiny.TRAINING, "asset": "edm-cifar10-uncond"}},
            "teacher: a teacher has either `training` or `asset`",
        ),
        ({"teacher": None, CTM: {"weights": "x"}}, "samplers names the model 'teacher'"),
        ({CTM: {"weights": "x", "training": tiny.TRAINING}}, "unknown key 'models.ctm.training'"),
        ({CTM: {"weights": "x", "step": -1}}, "models.ctm.step: Input should be greater than or"),
        ({CTM: {"weights": "x", "objective": "dsm"}}, "there is no such objective"),
        (
            with_model("new", section(init_from={"model": "gan", "step": 6})),
            "models.new.init_from: no other model 'gan' is trained here; there are ctm",
        ),
        (
            with_model("new", section(init_from={"model": "new", "step": 12})),
            "models.new.init_from: no other model 'new' is trained here; there are ctm",
        ),
        (
            with_model("new", section(init_from={"model": "ctm", "step": 7})),
            "models.new.init_from: ctm exports no weights at step 7, only at 6, 12; add it to its",
        ),
        (
            with_model("new", section(init_from={"model": "ctm", "step": 12}))
            | {f"{CTM}.init_from": {"model": "new", "step": 12}},
            "models.ctm.init_from: ctm from new from ctm is a circle",
        ),
        (
            {"models": {}, "teacher": None, "evaluation.samplers": {}},
            "neither a teacher nor models: there is nothing to do",
        ),
    ],
)
def test_impossible_origins(changes: tiny.Changes, expected: str, tmp_path: Path) -> None:
    assert expected in sentence(tmp_path, changes)


def test_a_fork_starts_at_a_snapshot_or_the_last_step() -> None:
    for step in (6, 12):
        changes = with_model("gan", section(init_from={"model": "ctm", "step": step}), ANY)
        made = tiny.experiment(changes)
        assert made.student("gan").initial is None
        assert made.fork_steps("ctm") == [step] and made.fork_steps("gan") == []
        assert Experiment.model_validate(made.model_dump()) == made
    assert made.exported_steps("ctm") == [6, 12]


def test_a_fork_depends_on_what_it_is_forked_from() -> None:
    fork = with_model("gan", section(init_from={"model": "ctm", "step": 6}), ANY)
    plain = tiny.experiment(fork)
    other = tiny.experiment(fork | {f"{CTM}.target_ema": 0.7})
    assert plain.train_hash("gan") != other.train_hash("gan")
    kept = tiny.experiment(fork | {f"{CTM}.training.keep": 9, f"{CTM}.training.snapshots": [5, 6]})
    assert plain.train_hash("gan") == kept.train_hash("gan")
    assert plain.train_hash("ctm") == tiny.experiment().train_hash("ctm")


def test_released_models_are_sampled_and_not_trained() -> None:
    changes = {CTM: {"weights": "ctm-imagenet64", "step": 49000}, **WITHOUT_TEACHER}
    made = tiny.experiment(changes | {"seeds": [3, 5]})
    assert made.models["ctm"] == Released(weights="ctm-imagenet64", step=49000)
    assert made.imported("ctm") == "ctm-imagenet64"
    assert list(made.runs()) == [("ctm", 0)] and made.students == {}
    assert made.exported_steps("ctm") == [49000] and made.last_step("ctm") == 49000
    assert made.named_assets() == {"models.ctm.weights": "ctm-imagenet64"}
    assert made.cells("ctm", 49000) == made.cells("ctm")
    assert made.resolved("bf16") == made
    with pytest.raises(UserError, match="ctm of tiny is not trained here but converted from the"):
        made.training("ctm")


def test_a_converted_teacher_teaches_but_is_not_trained() -> None:
    made = tiny.experiment({"teacher": {"asset": "edm-cifar10-uncond"}})
    assert made.imported("teacher") == "edm-cifar10-uncond" and made.imported("ctm") is None
    assert made.named_assets() == {"teacher.asset": "edm-cifar10-uncond"}
    assert not made.trains_teacher and made.exported_steps("teacher") == [0]
    assert made.train_hash("ctm") != tiny.experiment().train_hash("ctm")
    assert made.resolved("bf16").student("ctm").training.precision == "fp32"
    with pytest.raises(UserError, match="the teacher of tiny is not trained here but converted"):
        made.training("teacher")


def test_a_teacher_that_a_student_does_not_use_is_not_in_its_hash() -> None:
    scratch = {f"{CTM}.objective": "ctm_scratch"}
    plain = tiny.experiment(scratch)
    longer = tiny.experiment(scratch | {"teacher.training.steps": 13})
    assert plain.train_hash("ctm") == longer.train_hash("ctm")
