"""Students by objective, forks, released models, teachers: what may stand together, and hashes."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.sections import shows
from pydantic import ValidationError

from ctm_core import config
from ctm_core.config import Cell, Experiment, Released, Student, dag
from ctm_core.config import objective_traits as objective_module
from ctm_core.config.objective_traits import ObjectiveTraits, objectives, traits
from ctm_core.config.student import CTM_LOSS
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
CTM = "models.ctm"
TRAINING = tiny.TRAINING
#: Samplers of a model that only jumps to sigma_min.
FINAL = [{"sampler": "gamma", "nfe": [1, 2], "gamma": [1]}]
ANY = [{"sampler": "gamma", "nfe": [1, 2], "gamma": [0, 1]}]


def with_model(name: str, section: dict[str, Any], samplers: Any = None) -> dict[str, Any]:
    """Changes that add a model to the tiny experiment."""
    return {f"models.{name}": section, f"evaluation.samplers.{name}": samplers or FINAL}


def sentence(changes: tiny.Changes, tmp_path: Path) -> str:
    path = tiny.write_experiment(tmp_path / "tiny.yaml", changes)
    with pytest.raises(UserError) as error:
        config.load_experiment(path)
    text = str(error.value)
    assert "\n" not in text and "<" not in text
    return text.removeprefix(f"{path}: ")


def section(**keys: Any) -> dict[str, Any]:
    return {"grid_points": 4, "training": copy.deepcopy(TRAINING), **keys}


# -- objectives --------------------------------------------------------------------------------


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
    assert expected in sentence(changes, tmp_path)


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
        Student.model_validate({"weak_teacher": 5, "training": TRAINING})


def test_an_objective_may_need_the_model_that_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.py").write_text(f"TRAITS = {TOY | {'second': 'init'}}\n")
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    section = {"objective": "toy", "training": TRAINING}
    with pytest.raises(ValidationError, match="toy keeps the model that it starts from; name it"):
        Student.model_validate(section)


def test_a_mistake_in_the_traits_of_an_objective_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("TRAITS = {'teachers': False}\n")
    monkeypatch.setattr(objective_module.OBJECTIVES, "folder", tmp_path)
    with pytest.raises(UserError, match=r"mine\.py: TRAITS\['teachers'\] is unknown; there are"):
        tiny.experiment({"models.ctm.objective": "mine"})


@pytest.mark.parametrize("objective", ["cd", "ct"])
def test_consistency_models_go_one_step_and_have_no_dsm(objective: str) -> None:
    made = tiny.experiment(with_model("cm", section(objective=objective)))
    student = made.student("cm")
    assert (student.matching, student.heun_steps, student.dsm.enabled) == ("local", 1, False)
    assert student.uses_teacher == (objective == "cd")
    assert student.initial == ("teacher" if objective == "cd" else "random")
    assert Experiment.model_validate(made.model_dump()) == made


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"objective": "cm"}, "objective: there is no such objective; there are ayf, cd, ct, ctm"),
        ({"objective": "dsm"}, "there is no such objective"),
        ({"objective": "cd", "matching": "soft"}, "cd goes one step of the grid: leave matching"),
        ({"objective": "ct", "max_heun_steps": 2}, "ct goes one step of the grid"),
        ({"objective": "cd", "target_inner": "ema"}, "cd has no inner target map"),
        ({"objective": "cd", "dsm": {"weight": 2.0}}, "cd has no dsm term; leave dsm out"),
        ({"objective": "ctm", "scratch_solver": "heun"}, "does not solve with its own average"),
        ({"objective": "ctm_scratch", "solver": "ab2"}, "integrates no teacher; leave solver out"),
        ({"matching": "local", "solver": "dpmpp_2m"}, "every solve is a single step; leave it"),
        ({"init_from": {"model": "ctm", "step": 6}, "initial": "random"}, "leave initial out"),
        ({"init_from": {"model": "ctm"}}, "the key 'models.new.init_from.step' is missing"),
        ({"lambda_scope": "batch"}, "models.new.lambda_scope: Input should be 'microbatch' or"),
        ({"variant": "paper"}, "models.new.variant: Input should be 'released' or 'printed'"),
        ({"distance": "lpips_vgg"}, "the distance lpips_vgg needs perceptual.resize: 224"),
        (
            {"distance": "stlpips_vgg", "perceptual": {"resize": 32, "pooling": "max"}},
            "perceptual.pooling cannot be chosen for stlpips_vgg",
        ),
        ({"training": TRAINING | {"accumulation": "max"}}, "should be 'mean' or 'sum'"),
        ({"adversarial": {"discriminator": {"resolution": 200}}}, "must be a multiple of 32"),
        ({"adversarial": {"discriminator": {"resolution": 32}}}, "resolution"),
        ({"adversarial": {"discriminator": {"backbones": ["vgg"]}}}, "backbones.0: Input should"),
        ({"adversarial": {"discriminator": {"backbones": []}}}, "at least 1 item"),
        (
            {"adversarial": {"discriminator": {"backbones": ["tiny", "tiny"]}}},
            "duplicate backbone",
        ),
        ({"adversarial": {"betas": [0.5, 1.0]}}, "adversarial.betas.1: Input should be less than"),
        ({"adversarial": {"period": 1}}, "adversarial.period: Input should be greater than or eq"),
        (
            {"adversarial": {"lr": 1}},
            "unknown key 'models.new.adversarial.lr'; allowed here: betas, disc",
        ),
    ],
)
def test_impossible_students(keys: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in sentence(with_model("new", section(**keys), ANY), tmp_path)


@pytest.mark.parametrize("objective", [n for n in objectives() if traits(n).final_only])
@pytest.mark.parametrize(
    ("grid", "given"),
    [
        ({"sampler": "gamma", "nfe": [2], "gamma": [0]}, "gamma 0"),
        ({"sampler": "gamma", "nfe": [1, 4], "gamma": [0.5, 1]}, "gamma 0.5"),
        ({"sampler": "heun", "nfe": [3]}, "sampler heun"),
    ],
)
def test_models_that_know_only_sigma_min_have_gamma_one(
    objective: str, grid: dict[str, Any], given: str, tmp_path: Path
) -> None:
    changes = tiny.of_objective(objective) | {"evaluation.samplers.ctm": [grid]}
    said = sentence(changes, tmp_path)
    assert re.sub(r" \(line \d+\)$", " (line)", said) == (
        "evaluation.samplers.ctm: a model that only jumps to the end is sampled with gamma 1, "
        f"not {given} (line)"
    )


def test_a_network_without_target_time_serves_consistency_models_alone(tmp_path: Path) -> None:
    adm = {"network.architecture": "adm", "models": {"cd": section(objective="cd")}}
    adm["evaluation.samplers"] = {"teacher": [{"sampler": "heun", "nfe": [3]}], "cd": FINAL}
    adm["evaluation.protocols"] = {"tiny": "all"}
    assert tiny.experiment(adm).student("cd").objective == "cd"
    adm["models"]["cd"]["objective"] = "ctm_s0"
    assert "adm has no target time s, so models.cd (ctm_s0) cannot" in sentence(adm, tmp_path)


# -- variants ----------------------------------------------------------------------------------


def test_the_experiments_variant_is_every_students_that_has_none() -> None:
    changes = with_model("own", section(variant="released"), ANY) | {"variant": "printed"}
    made = tiny.experiment(changes)
    assert made.student("ctm").variant == "printed" and made.student("ctm").inner == "ema"
    assert made.student("own").variant == "released"
    assert made.train_hash("ctm") == tiny.experiment({f"{CTM}.variant": "printed"}).train_hash(
        "ctm"
    )


def test_what_a_variant_decides_and_a_key_overrides() -> None:
    for variant, inner, solver, loss in (
        ("released", "model", "jump", "hinge"),
        ("printed", "ema", "heun", "log"),
    ):
        student = Student.model_validate(section(variant=variant))
        assert (student.inner, student.own_solver, student.adversarial_loss) == (
            inner,
            solver,
            loss,
        )
    given = section(objective="ctm_scratch", target_inner="ema", scratch_solver="heun")
    student = Student.model_validate(given | {"adversarial": {"loss": "log"}})
    assert (student.inner, student.own_solver, student.adversarial_loss) == ("ema", "heun", "log")


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
            {"teacher": {"training": TRAINING, "asset": "edm-cifar10-uncond"}},
            "teacher: a teacher has either `training` or `asset`",
        ),
        ({"teacher": None, CTM: {"weights": "x"}}, "samplers names the model 'teacher'"),
        ({CTM: {"weights": "x", "training": TRAINING}}, "unknown key 'models.ctm.training'"),
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
    assert expected in sentence(changes, tmp_path)


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


# -- evaluation and resources ------------------------------------------------------------------


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


def test_resources_have_the_names_that_snakemake_knows() -> None:
    made = tiny.experiment(
        {"resources": {"training": {"processes": 4, "gpus": 4, "memory_gb": 64, "hours": 1.5}}}
    )
    assert made.resources.training.limits == {"gpu": 4, "mem_mb": 64000, "runtime": 90}
    assert made.resources.evaluation.limits == {"mem_mb": 4000, "runtime": 240}
    assert made.train_hash("ctm") == tiny.experiment().train_hash("ctm")


def test_external_files_of_a_training() -> None:
    student = Student.model_validate(
        section(distance="lpips_vgg", perceptual={"resize": 224}, adversarial={})
    )
    assert student.assets == ("vgg16", "lpips-vgg", "deit", "efficientnet-lite0")
    small = {"discriminator": {"backbones": ["tiny"], "resolution": 64}}
    assert Student.model_validate(section(adversarial=small)).assets == ()
    assert config.Dataset(name="cifar10").assets == ("cifar10",)
    assert config.Dataset(name="cifar10", source="/somewhere").assets == ()
    assert config.Dataset(name="digits").assets == ()
