"""What the keys of an experiment, its data set, its teacher and its resources change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import tiny
from fixtures.one_step import Lab
from fixtures.plan import SPEED
from fixtures.sections import shows

from ctm_core.config import Experiment, dag
from ctm_core.config.project import Project, open_project, read_project
from ctm_core.diffusion import randomness
from ctm_core.models.weight_file import read_record
from ctm_core.plan.costs import Costs, Estimate
from ctm_core.plan.speeds import Speed, read_speed
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json
from ctm_core.training import denoising
from ctm_core.training.assembly import check_dataset

SHORT = {"teacher.training.steps": 1}
SMOKE = {"evaluation.protocols": {"desk-smoke": "all"}}


@pytest.fixture
def project(tmp_path: Path) -> Any:
    """Reads the tiny experiment with changes, by a file that lists it."""

    def read(changes: tiny.Changes | None = None, name: str = "tiny") -> Project:
        tiny.write_experiment(tmp_path / f"{name}.yaml", {**SMOKE, **(changes or {})})
        listing = tmp_path / "config.yaml"
        listing.write_text(yaml.safe_dump({"experiments": [str(tmp_path / f"{name}.yaml")]}))
        return open_project(listing)

    return read


def jobs(project: Project, kind: str) -> list[str]:
    return [job.label for job in dag.graph(project, "all") if job.kind == kind]


@shows("Workflow.experiments")
def test_experiments(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.yaml"
        files.append(str(tiny.write_experiment(path, {**SMOKE, "experiment": name})))
    made = read_project({"experiments": files}, "config.yaml")
    assert jobs(made, "train") == [
        f"{name} {model} seed 0" for name in ("one", "two") for model in ("teacher", "ctm")
    ]
    assert list(read_project({"experiments": files[:1]}, "config.yaml").experiments) == ["one"]


@shows("Experiment.experiment")
def test_name(lab: Lab, project: Any) -> None:
    assert jobs(project({"experiment": "other"}), "train")[0] == "other teacher seed 0"
    made = lab.train("teacher", {**SHORT, "experiment": "other"})
    assert read_record(made.folder / "teacher.safetensors")["experiment"] == "other"


@shows("Experiment.dataset", "Dataset.name")
def test_dataset(lab: Lab, project: Any) -> None:
    made = project({"dataset": {"name": "fashion-mnist"}})
    assert "fashion-mnist train" in jobs(made, "data")
    with pytest.raises(
        UserError, match="holds digits, split train, but the experiment tiny learns"
    ):
        lab.train("teacher", {"dataset": {"name": "fashion-mnist"}})


@shows("Dataset.source")
def test_source(project: Any) -> None:
    for source, files in (("data", ()), (None, ("cifar10",))):
        made = project({"dataset": {"name": "cifar10", "source": source}})
        (job,) = (j for j in dag.graph(made, "all") if j.label == "cifar10 train")
        assert job.assets == files
    with pytest.raises(UserError, match="digits takes no source"):
        project({"dataset": {"name": "digits", "source": "data"}})


def test_own_images(project: Any, lab: Lab, tmp_path: Path) -> None:
    own = {"name": "mine", "reader": "images", "source": "photographs", "resolution": 16}
    settings = {}
    for changes in ({}, {"resolution": 8}, {"filter": "area"}, {"source": "others"}):
        made = project({"dataset": own | changes})
        (job,) = (j for j in dag.graph(made, "all") if j.label == "mine train")
        settings[str(changes)] = str(job.settings)
    assert len(set(settings.values())) == 4
    files = []
    for name, side in (("one", 16), ("two", 8)):
        changes = {"experiment": name, "dataset": own | {"resolution": side}}
        files.append(str(tiny.write_experiment(tmp_path / f"{name}.yaml", SMOKE | changes)))
    with pytest.raises(UserError, match=r"dataset\.resolution of mine is 8, but another .* 16"):
        read_project({"experiments": files}, "config.yaml")
    hashes = {
        tiny.experiment({"dataset": own | {"resolution": side}}).train_hash("teacher")
        for side in (8, 16)
    }
    assert len(hashes) == 2


def test_protocols_refer_to_data_sets_of_the_run(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/protocols").mkdir(parents=True)
    protocol = tiny.PROTOCOL | {"name": "own", "reference": {"dataset": "mine", "split": "train"}}
    (tmp_path / "config/protocols/own.yaml").write_text(yaml.safe_dump(protocol))
    changes = {"evaluation.protocols": {"own": "all"}}
    with pytest.raises(UserError, match=r"own\.yaml: reference\.dataset: unknown dataset 'mine'"):
        project(changes)
    own = {"name": "mine", "reader": "images", "source": "photographs", "resolution": 16}
    assert "mine train" in jobs(project(changes | {"dataset": own}), "data")


def test_data_of_other_settings_are_refused(lab: Lab) -> None:
    own = {"name": "mine", "reader": "images", "source": "photographs", "resolution": 16}
    manifest = lab.digits.manifest | {
        "name": "mine", "preparation": {"settings": own | {"resolution": 8}}
    }  # fmt: skip
    data = replace(lab.digits, manifest=manifest)
    with pytest.raises(UserError, match=r"with dataset\.resolution 8, but tiny has 16"):
        check_dataset(tiny.experiment({"dataset": own}), data)


@shows("Experiment.scale")
def test_scale(lab: Lab) -> None:
    made = lab.train("teacher", {"scale": 0.5, "teacher.training.steps": 4})
    assert len(made.after) == made.record["steps"] == 2
    twice = tiny.experiment({"scale": 2})
    assert twice.last_step("teacher") == 2 * tiny.TRAINING["steps"]


@shows("Evaluation.optional")
def test_optional_protocols_follow_their_files(
    project: Any, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {
        "evaluation.protocols": {"desk-smoke": "all", "clean-cifar10": "all"},
        "evaluation.optional": ["clean-cifar10"],
    }
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    made = project(chosen)
    assert list(made.protocols) == ["desk-smoke"]
    assert [job.name for job in dag.graph(made, "all") if job.kind == "reference"] == [
        "desk-smoke"
    ]
    [sentence] = made.left_out
    assert sentence.startswith("tiny is not scored by clean-cifar10, which is optional: inception")
    made.assets["inception"].path().touch()
    made = project(chosen)
    assert (set(made.protocols), made.left_out) == ({"desk-smoke", "clean-cifar10"}, ())
    # An evaluation is scored by the references that it is given.
    both = {"evaluation.protocols": {"tiny": "all", "other": "all"}}
    with pytest.raises(UserError, match="no reference given for the protocol other"):
        lab.evaluate(both)
    rows = lab.evaluate({**both, "evaluation.optional": ["other"]})
    assert {row["protocol"] for row in rows} == {"tiny"}


@pytest.mark.parametrize(
    ("optional", "sentence"),
    [
        (["mine"], r"evaluation.optional: mine is not one of protocols \(desk-smoke\)"),
        (["desk-smoke"], "evaluation.optional: one of protocols at least has to remain"),
    ],
)
def test_optional_protocols_are_some_of_those(
    project: Any, optional: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        project({"evaluation.optional": optional})


@shows("Experiment.conditional")
@pytest.mark.parametrize(("conditional", "classes"), [(True, 10), (False, 0)])
def test_conditional(lab: Lab, conditional: bool, classes: int) -> None:
    made = lab.train("teacher", {**SHORT, "conditional": conditional})
    assert made.trainer.student.label_dim == classes
    assert all((batch.labels is None) != conditional for batch in made.batches)


@shows("Experiment.seeds")
def test_seeds(lab: Lab, project: Any) -> None:
    made = project({"seeds": [3, 5]})
    assert jobs(made, "train") == ["tiny teacher seed 0", "tiny ctm seed 3", "tiny ctm seed 5"]
    first, second = (lab.train("ctm", seed=seed) for seed in (3, 5))
    assert not torch.equal(first.batches[0].images, second.batches[0].images)


@shows("Student.seeds")
def test_seeds_of_one_model(project: Any) -> None:
    made = project({"models.ctm.seeds": [4, 6]})
    assert jobs(made, "train") == ["tiny teacher seed 0", "tiny ctm seed 4", "tiny ctm seed 6"]
    tiny = made.experiments["tiny"]
    assert tiny.train_hash("ctm") == project({}).experiments["tiny"].train_hash("ctm")
    fork = tiny.models["ctm"].model_dump() | {"initial": None, "seeds": [4, 5]}
    fork["init_from"] = {"model": "ctm", "step": tiny.last_step("ctm")}
    with pytest.raises(UserError, match="more has the training seed 5, which ctm has not"):
        project({"models.ctm.seeds": [4, 6], "models.more": fork})


@shows("Experiment.threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads(lab: Lab, threads: int) -> None:
    lab.train("teacher", {**SHORT, "threads": threads})
    assert torch.get_num_threads() == threads


@shows("Experiment.evaluation")
def test_evaluation(project: Any) -> None:
    made = project({"evaluation.samplers.ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}]})
    assert [cell.nfe for cell in made.experiments["tiny"].cells("ctm")] == [1]


# -- the teacher ----------------------------------------------------------------------------------


@shows("Experiment.teacher", "Teacher.asset")
def test_converted_teacher(project: Any) -> None:
    cifar = {"dataset": {"name": "cifar10"}, "conditional": False}
    made = project({**cifar, "teacher": {"asset": "edm-cifar10-uncond"}})
    assert jobs(made, "convert") == ["edm-cifar10-uncond"]
    assert jobs(made, "train") == ["tiny ctm seed 0"]
    (job,) = (job for job in dag.graph(made, "all") if job.kind == "train")
    assert job.reads["teacher"] == "results/teachers/edm-cifar10-uncond/weights.safetensors"


@shows("Teacher.seed")
def test_seed_of_the_teacher(lab: Lab, project: Any) -> None:
    made = lab.train("teacher", {**SHORT, "teacher.seed": 4})
    assert made.record["seed"] == 4
    other = lab.train("teacher", SHORT)
    assert any(not torch.equal(made.before[n], value) for n, value in other.before.items())
    assert not torch.equal(made.batches[0].images, other.batches[0].images)
    assert jobs(project({"teacher.seed": 4}), "train")[0] == "tiny teacher seed 4"
    (job,) = (j for j in dag.graph(project({"teacher.seed": 4}), "all") if j.model == "ctm"
              and j.kind == "train")  # fmt: skip
    assert job.reads["teacher"] == "results/tiny/teacher/seed-4/teacher.safetensors"


@shows("Teacher.p_mean", "Teacher.p_std")
@pytest.mark.parametrize("keys", [{}, {"p_mean": 0.5}, {"p_std": 0.4}])
def test_noise_levels(lab: Lab, keys: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    loss = denoising.dsm_loss

    def watched(model: Any, images: Any, sigma: Any, *rest: Any) -> Any:
        levels.append(sigma)
        return loss(model, images, sigma, *rest)

    monkeypatch.setattr(denoising, "dsm_loss", watched)
    lab.train("teacher", {**SHORT, **{f"teacher.{key}": value for key, value in keys.items()}})
    law = {"p_mean": -1.2, "p_std": 1.2} | keys
    u = randomness.uniform(0, "sigma", 0, 0, 8)
    expected = (law["p_mean"] + law["p_std"] * torch.special.ndtri(u)).exp()
    torch.testing.assert_close(levels[0], expected.float())


@shows("Teacher.augment")
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_augment(lab: Lab, probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    loss = denoising.dsm_loss

    def watched(model: Any, images: Any, *rest: Any) -> Any:
        seen.append((images, rest[-1]))
        return loss(model, images, *rest)

    monkeypatch.setattr(denoising, "dsm_loss", watched)
    changes = {**SHORT, "network.augment_dim": 9, "teacher.augment": probability}
    made = lab.train("teacher", changes)
    (images, labels), plain = seen[0], made.batches[0].images
    assert torch.equal(images, plain) == (probability == 0.0)
    if probability == 0.0:
        assert labels is None
    else:  # scale, rotation, anisotropy and translation of every image; digits are not mirrored
        assert not labels[:, :2].any()
        assert (labels[:, [2, 3, 4, 5, 7, 8]] != 0).all()


# -- resources ------------------------------------------------------------------------------------


def estimates(project: Project, tmp_path: Path) -> dict[str, Estimate]:
    write_json(tmp_path / "speed.json", SPEED)
    speed: Speed = read_speed(tmp_path / "speed.json")
    costs = Costs(project, speed)
    wanted = [job for job in dag.graph(project, "all") if job.kind in ("train", "evaluate")]
    return {each.job.label: each for each in costs.of(wanted)}


@shows("Experiment.resources", "Resources.training", "Resources.evaluation")
@shows("Share.gpus", "TrainingShare.gpus", "TrainingShare.processes")
def test_shares_in_the_plan(project: Any, tmp_path: Path) -> None:
    shares = {"training": {"gpus": 2, "processes": 2}, "evaluation": {"gpus": 1}}
    for changes, gpus, processes, of_evaluation in (
        ({}, 0, 1, 0),
        ({"resources": shares}, 2, 2, 1),
    ):
        made = estimates(project(changes), tmp_path)
        training, evaluation = made["tiny ctm seed 0"], made["tiny ctm seed 0 step 12"]
        assert (training.gpus, training.processes) == (gpus, processes)
        assert evaluation.gpus == of_evaluation
        assert training.work == pytest.approx(training.seconds / max(1, gpus))


@shows("Share.memory_gb", "Share.hours", "TrainingShare.memory_gb", "TrainingShare.hours")
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_limits_of_the_rules(kind: str) -> None:
    def limits(**share: Any) -> dict[str, int]:
        made: Experiment = tiny.experiment({"resources": {kind: share}})
        return dict(getattr(made.resources, kind).limits)

    assert limits() == {"mem_mb": 4000, "runtime": 240}
    assert limits(memory_gb=7) == {"mem_mb": 7000, "runtime": 240}
    assert limits(hours=0.5) == {"mem_mb": 4000, "runtime": 30}
    assert limits(gpus=3) == {"gpu": 3, "mem_mb": 4000, "runtime": 240}
