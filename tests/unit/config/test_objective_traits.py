"""Traits of objectives: read without running their files, and what they allow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.experiments import CTM, FINAL, sentence
from fixtures.sections import shows
from pydantic import ValidationError

from ctm_core.config import Experiment, Student, dag
from ctm_core.config import objective_traits as objective_module
from ctm_core.config.objective_traits import ObjectiveTraits, objectives, traits
from ctm_core.config.student import CTM_LOSS
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
TOY = {
    "final_only": True,
    "ctm_loss": False,
    "settings": {
        "rate": {"default": 0.5, "minimum": 0.0, "maximum": 1.0, "description": "a number"},
        "size": {"default": 4, "minimum": 1.0, "maximum": 64.0, "description": "of a group"},
        "clip": {"default": False, "description": "a switch"},
        "law": {"default": "v0", "choices": ["v0", "v1"], "description": "a word"},
    },
    "group": "size",
    "second": "weak_teacher",
    "jvp": "differentiated",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Changes that make tiny's student one of an objective that has every trait."""
    shutil.copy(objective_module.OBJECTIVES.folder / "ctm.py", tmp_path)
    (tmp_path / "toy.py").write_text(f"TRAITS = {TOY}\n")
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    return tiny.of_objective("toy")


def test_objectives_are_the_files_of_the_folder() -> None:
    folder = ROOT / "ctm_core/training/objectives"
    assert objectives() == sorted(file.stem for file in folder.glob("[!_]*.py"))
    assert {"cd", "ct", "ctm", "ctm_s0", "ctm_scratch"} <= {*objectives()}
    assert traits("ctm") == ObjectiveTraits()
    assert not traits("cd").time_s and traits("cd").teacher and not traits("ct").teacher
    assert traits("ctm_s0") == ObjectiveTraits(final_only=True)


def test_a_new_objective_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "raise ImportError('this is read and not run')\n"
        "TRAITS = {'teacher': False, 'final_only': True}\n"
    )
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    assert objectives() == ["mine"]
    assert traits("mine") == ObjectiveTraits(teacher=False, final_only=True)
    changes = {"models.ctm.objective": "mine", "evaluation.samplers.ctm": FINAL}
    assert tiny.experiment(changes).student("ctm").initial == "random"


@shows("Student.settings")
def test_settings_are_filled_typed_and_hashed(toy: dict[str, Any]) -> None:
    plain = tiny.experiment(toy)
    defaults = {"rate": 0.5, "size": 4, "clip": False, "law": "v0"}
    assert plain.student("ctm").settings == defaults
    assert plain.model_dump()["models"]["ctm"]["settings"] == defaults
    assert Experiment.model_validate(plain.model_dump()) == plain
    spelled, other = (
        tiny.experiment(toy | {f"{CTM}.settings": given})
        for given in (defaults | {"rate": 0.5}, {"rate": 1})
    )
    assert spelled.train_hash("ctm") == plain.train_hash("ctm") != other.train_hash("ctm")
    assert type(other.student("ctm").settings["rate"]) is float
    assert tiny.experiment({f"{CTM}.grid_points": 4}).train_hash("ctm") == (
        tiny.experiment({f"{CTM}.settings": {}}).train_hash("ctm")
    )


def test_keys_of_ctms_loss_are_in_no_dump_of_another(toy: dict[str, Any]) -> None:
    student = tiny.experiment(toy).student("ctm")
    assert not {*CTM_LOSS} & student.model_dump().keys()
    assert not student.dsm.enabled and student.heun_steps == 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"grid_points": 4}, "models.ctm: the objective toy has a loss of its own; leave grid_po"),
        (
            {"settings.ratio": 1},
            "settings.ratio: the objective toy has no such setting; it has ra",
        ),
        ({"settings.rate": 1.5}, "models.ctm: settings.rate must lie between 0 and 1, not 1.5"),
        ({"settings.rate": "half"}, "settings.rate must be a number, not 'half'"),
        ({"settings.size": 2.5}, "settings.size must be a whole number, not 2.5"),
        ({"settings.size": True}, "settings.size must be a whole number, not True"),
        ({"settings.clip": 1}, "settings.clip must be true or false, not 1"),
        ({"settings.law": "v2"}, "settings.law must be one of v0, v1, not 'v2'"),
        ({"settings.size": 3}, "training.batch_size must be a multiple of settings.size, 3"),
        ({"training.micro_batch": 2}, "micro_batch must be a multiple of settings.size, 4, be"),
        ({"training.recompute": True}, "training.recompute: the objective toy differentiates"),
        (
            {"weak_teacher": 5},
            "models.ctm.weak_teacher: the teacher has no snapshot of step 5, on",
        ),
    ],
)
def test_impossible_settings(
    toy: dict[str, Any], keys: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    changes = toy | {f"{CTM}.settings": {}} | {f"{CTM}.{key}": keys[key] for key in keys}
    assert expected in sentence(tmp_path, changes)


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        ({"end": 0.0}, r"TRAITS is .*: end is of models without s that are final_only"),
        ({"group": "size"}, "group must name one of settings, not size"),
        ({"settings": {"a": {"default": 1, "description": "a"}}}, "needs minimum and maximum"),
        ({"settings": {"a": {"default": "b", "description": "a"}}}, "its default must be one of"),
    ],
)
def test_impossible_traits(
    traits: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(f"TRAITS = {traits}\n")
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    with pytest.raises(UserError, match=expected):
        tiny.experiment({"models.ctm.objective": "mine"})


@shows("Student.weak_teacher")
def test_a_weak_teacher_is_a_snapshot_of_the_teacher(toy: dict[str, Any]) -> None:
    weak = toy | {f"{CTM}.weak_teacher": 5, "teacher.training.snapshots": [5, 6]}
    made = tiny.experiment(weak)
    reads = dag.training(made, "ctm", 0).reads
    assert reads["weak_teacher"] == "results/tiny/teacher/seed-0/snapshot-00000005.safetensors"
    assert "weak_teacher" not in dag.training(tiny.experiment(toy), "ctm", 0).reads
    assert made.train_hash("ctm") != tiny.experiment(toy).train_hash("ctm")
    with pytest.raises(ValidationError, match="ctm has no guidance; leave weak_teacher out"):
        Student.model_validate({"weak_teacher": 5, "training": tiny.TRAINING})


def test_an_objective_may_need_the_model_that_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.py").write_text(f"TRAITS = {TOY | {'second': 'init'}}\n")
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    section = {"objective": "toy", "training": tiny.TRAINING}
    with pytest.raises(ValidationError, match="toy keeps the model that it starts from; name it"):
        Student.model_validate(section)


def test_a_mistake_in_the_traits_of_an_objective_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("TRAITS = {'teachers': False}\n")
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    with pytest.raises(UserError, match=r"mine\.py: TRAITS\['teachers'\] is unknown; there are"):
        tiny.experiment({"models.ctm.objective": "mine"})
