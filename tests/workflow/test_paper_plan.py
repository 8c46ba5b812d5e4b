"""The paper's experiments as a plan: complete without a single file, refused without them."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.project import Project, jobs

from ctm_core.config import Experiment, load_experiment, read_yaml
from ctm_core.config.protocols import load_protocol
from ctm_core.data import assets
from ctm_core.models import weight_file
from ctm_core.runtime.files import read_json, sha256_file

PAPER = ("--configfile", "config/paper.yaml")
TABLE = ("--", "results/table.csv")
#: Nothing of the machine's own files.
NOWHERE = {"CTM_ASSETS": "nowhere"}


def needed(project: Project) -> set[str]:
    """Every external file of the paper that no Python package contains."""
    names: set[str] = set()
    folder = project.path / "config"
    for name in read_yaml(folder / "paper.yaml")["experiments"]:
        experiment = load_experiment(folder / f"experiments/{name}.yaml")
        names |= set(experiment.named_assets().values())
        for student in experiment.students.values():
            names |= {*student.assets, *experiment.dataset.assets}
        for protocol in experiment.evaluation.protocols:
            names |= set(load_protocol(folder / f"protocols/{protocol}.yaml").assets)
    known = assets.load(folder / "assets.yaml")
    return {name for name in names if known[name].kind != "package"}


def test_the_paper_is_planned_without_its_files(project: Project) -> None:
    output = project.run("snakemake", "-n", "--quiet", "rules", *PAPER, *TABLE, **NOWHERE)
    planned = jobs(output)
    trainings = {rule: count for rule, count in planned.items() if rule.startswith("train_")}
    assert set(trainings) == {
        *(f"train_cifar10-uncond_{m}" for m in ("ctm", "ctm_nodsm", "ctm_local", "ctm_global")),
        *(f"train_cifar10-uncond_{m}" for m in ("cd", "ctm_gan")),
        *(f"train_cifar10-cond_{m}" for m in ("ctm", "ctm_gan")),
        *(f"train_cifar10-scratch_{m}" for m in ("ctm_scratch", "ctm_gan")),
        *(f"train_imagenet64_{m}" for m in ("ctm", "ctm_gan")),
    }
    assert set(trainings.values()) == {1}
    # Three teachers and three released models; CIFAR-10 and ImageNet.
    others = {rule: planned[rule] for rule in ("convert", "data", "reference", "table")}
    assert others == {"convert": 6, "data": 2, "reference": 2, "table": 1}
    assert not [rule for rule in planned if rule.startswith("teacher_")]
    assert sum(planned.values()) < 300
    project.run("ctm", "plan", "--config", PAPER[1], "--json", "plan.json", **NOWHERE)
    assert set(read_json(project.path / "plan.json")["missing"]) == needed(project)


def test_a_run_says_everything_that_is_missing_before_its_first_job(project: Project) -> None:
    command = ("snakemake", "--cores", "1", *PAPER, *TABLE)
    output = project.run(*command, code=2, **NOWHERE)
    missing = needed(project)
    known = assets.load(project.path / "config/assets.yaml")
    lines = output.splitlines()
    for name in missing:
        (line,) = [line for line in lines if f"({name}) is missing: " in line]
        assert line.endswith(f"put it at nowhere/{known[name].file}")
        assert all(url in line for url in known[name].urls)
    assert lines[-1] == (
        f"snakemake: {len(missing)} external files are needed first, see above; nothing was "
        "started"
    )
    assert "Traceback" not in output
    assert not (project.path / "results").exists() and not (project.path / "logs").exists()
    # The working directory is not left locked: the same sentence comes again.
    assert project.run(*command, code=2, **NOWHERE).splitlines()[-1] == lines[-1]


def test_only_what_is_asked_for_needs_files(project: Project) -> None:
    released = "results/imagenet64-released/ctm_gan/seed-0/step-49000/evaluation.json"
    output = project.run("snakemake", "--cores", "1", *PAPER, "--", released, code=2, **NOWHERE)
    found = set(re.findall(r"\((\S+)\) is missing: ", output))
    assert found == {"ctm-imagenet64", "adm-reference-imagenet64", "inception"}


def test_experiments_share_no_keys(project: Project) -> None:
    """What the plan of one experiment is does not depend on its company."""
    counts = {}
    for names in ("[cifar10-cond]", "[digits, cifar10-cond]", "[digits]"):
        (project.path / "some.yaml").write_text(f"experiments: {names}\n")
        counts[names] = project.planned(*TABLE, configuration=("--configfile", "some.yaml"))
    both, alone, digits = (
        counts[names] for names in ("[digits, cifar10-cond]", "[cifar10-cond]", "[digits]")
    )
    summed = {rule: alone.get(rule, 0) + digits.get(rule, 0) for rule in {**alone, **digits}}
    assert both == summed | {"table": 1}


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "experiments/cifar10-cond.yaml",
            "edm-cifar10-cond}",
            "edm-cifar10}",
            "teacher.asset: there is no asset 'edm-cifar10'; config/assets.yaml has cifar10, ",
        ),
        (
            "experiments/imagenet64-released.yaml",
            "weights: ctm-imagenet64",
            "weights: ctm-imagenet",
            "models.ctm_gan.weights: there is no asset 'ctm-imagenet'; config/assets.yaml has ",
        ),
        (
            "protocols/edm-cifar10.yaml",
            "edm-reference-cifar10",
            "edm-reference",
            "metrics: fid is of Inception (resize: inside) against edm-reference-cifar10 or adm",
        ),
        (
            "protocols/edm-cifar10.yaml",
            "edm-reference-cifar10, images: 50000, resolution: 32}\nmetrics: [fid, is]",
            "edm-reference, images: 50000, resolution: 32}\nmetrics: [fd, is]",
            "reference.asset: there is no asset 'edm-reference'; config/assets.yaml has cifar10",
        ),
        (
            "experiments/cifar10-cond.yaml",
            "step: 50000}",
            "step: 40000}",
            "models.ctm_gan.init_from: ctm exports no weights at step 40000, only at 50000; add",
        ),
        (
            "experiments/cifar10-uncond.yaml",
            "nfe: [1, 2], gamma: [1]",
            "nfe: [1, 2], gamma: [0, 1]",
            "evaluation.samplers.cd: a model that only jumps to the end is sampled",
        ),
    ],
)
def test_a_mistake_in_the_paper_is_one_sentence(
    project: Project, file: str, old: str, new: str, expected: str
) -> None:
    project.edit(f"config/{file}", old, new)
    output = project.run("snakemake", "-n", *PAPER, *TABLE, code=2)
    assert output.splitlines()[-1].startswith(f"snakemake: config/{file}: {expected}")
    assert "Traceback" not in output


# -- converted networks, from their files to the table ------------------------------------------


ASSET = """
  {name}:
    title: A small network for a test
    kind: file
    file: {file}
    by_hand: nowhere
    format: torch
    licence: none
"""


def a_network_of_others(path: Path, experiment: Experiment, *, time_s: bool) -> None:
    """Random weights in the form of ctm-cifar10's files: a flat dictionary of tensors."""
    torch.manual_seed(1)
    model = weight_file.build_model(
        network=experiment.network,
        diffusion=experiment.diffusion,
        resolution=8,
        channels=1,
        label_dim=10,
        time_s=time_s,
    )
    path.parent.mkdir(exist_ok=True)
    torch.save(model.state_dict(), path)


def test_converted_networks_teach_and_are_scored_and_forks_go_on(project: Project) -> None:
    smoke = project.path / "config/experiments/smoke.yaml"
    section = yaml.safe_load(smoke.read_text())
    section |= {"experiment": "mine", "teacher": {"asset": "a-teacher"}}
    del section["models"]["ctm_nodsm"], section["evaluation"]["samplers"]["ctm_nodsm"]
    section["models"]["ctm"]["training"] |= {"steps": 2, "snapshots": []}
    section["models"]["fork"] = section["models"]["ctm"] | {
        "init_from": {"model": "ctm", "step": 2},
        "adversarial": {"discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8}},
    }
    section["models"]["theirs"] = {"weights": "a-student", "step": 7}
    for model in ("ctm", "fork", "theirs"):
        section["evaluation"]["samplers"][model] = [{"sampler": "gamma", "nfe": [1], "gamma": [0]}]
    section["evaluation"]["protocols"] = {"desk-smoke": "all"}
    (project.path / "mine.yaml").write_text(yaml.safe_dump(section))
    (project.path / "config.yaml").write_text("experiments: [mine.yaml]\n")
    experiment = load_experiment(project.path / "mine.yaml")
    with (project.path / "config/assets.yaml").open("a") as file:
        file.write(ASSET.format(name="a-teacher", file="teacher.pt"))
        file.write(ASSET.format(name="a-student", file="model000007.pt"))
    folder = project.path / "files"
    a_network_of_others(folder / "teacher.pt", experiment, time_s=False)
    a_network_of_others(folder / "model000007.pt", experiment, time_s=True)
    command = ("snakemake", "--cores", "2", "--configfile", "config.yaml", *TABLE)
    project.run(*command, CTM_ASSETS="files")
    # Nobody states the hashes of these files; those of their first use are kept.
    pinned = read_json(project.path / "config/assets.lock")
    assert {name: pin["sha256"] for name, pin in pinned.items()} == {
        "a-teacher": sha256_file(folder / "teacher.pt"),
        "a-student": sha256_file(folder / "model000007.pt"),
    }

    with (project.path / "results/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["model"], row["step"], row["sampler"]) for row in rows}
    assert found == {
        ("teacher", "0", "heun"),
        ("teacher", "0", "ode"),
        ("ctm", "2", "gamma"),
        ("fork", "2", "gamma"),
        ("theirs", "7", "gamma"),
    }
    record = weight_file.read_record(project.path / "results/mine/fork/seed-0/student.safetensors")
    live = project.path / "results/mine/ctm/seed-0/live-00000002.safetensors"
    assert record["inputs"]["init"] == sha256_file(live)
    for origin, asset in (("teachers", "a-teacher"), ("released", "a-student")):
        made = project.path / f"results/{origin}/{asset}"
        assert {path.name for path in made.iterdir()} == {"weights.safetensors", "provenance.json"}
    # Converted once: the files may go, or lie elsewhere.
    shutil.rmtree(folder)
    assert project.planned(*TABLE, configuration=("--configfile", "config.yaml")) == {}
