"""Keys of students: which may stand together, and what a variant decides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.experiments import ANY, CTM, FINAL, section, sentence, with_model

from ctm_core import config
from ctm_core.config import Experiment, Student
from ctm_core.config.objective_traits import objectives, traits


def test_global_matching_has_no_inner_map(tmp_path: Path) -> None:
    changes = {f"{CTM}.matching": "global", f"{CTM}.target_inner": "ema"}
    assert "leave target_inner out" in sentence(tmp_path, changes)


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
        ({"training": tiny.TRAINING | {"accumulation": "max"}}, "should be 'mean' or 'sum'"),
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
    assert expected in sentence(tmp_path, with_model("new", section(**keys), ANY))


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
    said = sentence(tmp_path, changes)
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
    assert "adm has no target time s, so models.cd (ctm_s0) cannot" in sentence(tmp_path, adm)


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


# -- variants ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "given", "inner"),
    [
        ("released", None, "model"),
        ("printed", None, "ema"),
        ("released", "ema", "ema"),
        ("printed", "model", "model"),
    ],
)
def test_inner_map_of_the_variants(variant: str, given: str | None, inner: str) -> None:
    changes = {f"{CTM}.variant": variant}
    if given is not None:
        changes[f"{CTM}.target_inner"] = given
    assert tiny.experiment(changes).models["ctm"].inner == inner


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
