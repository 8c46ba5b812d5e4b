"""The profile for Slurm as a plan, and what it refuses; tests/system runs it on a cluster."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from fixtures.project import ROOT, Project
from fixtures.stand_ins import stand_in

TABLE = "results/table.csv"
SLURM = ("--profile", "slurm")


def profile(name: str) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load((ROOT / name / "config.yaml").read_text())
    return values


def test_the_two_profiles_share_no_key() -> None:
    """The default one would win, and silently."""
    assert not set(profile("slurm")) & set(profile("profiles/default"))


def test_every_key_of_the_profile_is_explained() -> None:
    lines = (ROOT / "slurm/config.yaml").read_text().splitlines()
    for before, line in pairwise(lines):
        # mem_mb and runtime share a comment.
        if re.match(r"\s*[a-z_-]+:", line) and "runtime: 120" not in line:
            assert before.lstrip().startswith("#"), line


def test_retries_stand_in_this_profile_alone() -> None:
    assert profile("slurm")["retries"] == 50
    assert "retries" not in profile("profiles/default")
    for file in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        assert not re.search(r"^\s*retries:", file.read_text(), re.M)


def test_the_profile_runs_the_paper(project: Project) -> None:
    expected = project.planned("--", TABLE, configuration=("--configfile", "config/paper.yaml"))
    assert project.planned("--", TABLE, configuration=SLURM) == expected
    assert sum(expected.values()) < 300


def test_another_config_replaces_the_papers(project: Project) -> None:
    (project.path / "two.yaml").write_text("experiments: [digits, smoke]\n")
    for name in ("config/config.yaml", "two.yaml"):
        alone = project.planned("--", TABLE, configuration=("--configfile", name))
        on_slurm = (*SLURM, "--configfile", name)
        assert project.planned("--", TABLE, configuration=on_slurm) == alone
        assert not [rule for rule in alone if "cifar10" in rule or "convert" in rule]


def resources(project: Project, *options: str) -> dict[str, list[str]]:
    """What the planned jobs ask of a cluster, by rule."""
    output = project.run("snakemake", "--dry-run", *SLURM, *options, "--", TABLE)
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r"^(?:local)?rule (\S+):\n((?:    .*\n)*)", output, re.M):
        asked = re.search(r"resources: (.*)", body)
        words = asked[1].split(", ") if asked else []
        found[name] = [w for w in words if not w.startswith(("tmpdir", "disk", "mem=", "mem_mib"))]
    return found


def test_jobs_ask_for_what_their_experiment_says(project: Project) -> None:
    asked = resources(project)
    training = asked["train_cifar10-uncond_ctm"]
    assert {"gpu=4", "mem_mb=64000", "attempt=1", "slurm_extra=--signal=USR1@300"} <= set(training)
    assert "runtime=1440" in training  # 240 hours, in slots
    assert {"gpu=1", "mem_mb=32000"} <= set(asked["evaluate"])
    assert {"mem_mb=8000", "runtime=120"} <= set(asked["data"])
    for words in (training, asked["evaluate"], asked["data"]):
        assert not [w for w in words if w.startswith(("slurm_partition", "gpu_model"))]


def test_a_cluster_is_described_in_one_place(project: Project) -> None:
    file = project.path / "slurm/config.yaml"
    text = file.read_text()
    for line in ("slurm_account: my-group", "slurm_partition: cpu", "gpu_partition: gpu"):
        text = text.replace(f"# {line}", line)
    text = text.replace("# gpu_type: a100", "gpu_type: h100").replace(": 1440", ": 480")
    file.write_text(text)
    asked = resources(project)
    for rule in ("train_imagenet64_ctm", "evaluate"):
        wanted = {"slurm_account=my-group", "slurm_partition=gpu", "gpu_model=h100", "runtime=480"}
        assert wanted <= set(asked[rule])
    small = set(asked["data"])
    assert {"slurm_account=my-group", "slurm_partition=cpu", "runtime=120"} <= small
    assert not [word for word in small if word.startswith("gpu_model")]
    # Without a GPU an evaluation is a small step like the others.
    digits = resources(project, "--configfile", "config/smoke.yaml")["evaluate"]
    assert "slurm_partition=cpu" in digits
    assert not [word for word in digits if word.startswith(("gpu=", "gpu_model"))]


# -- stand-ins for Slurm's commands -------------------------------------------------------------


def refused(project: Project, environment: dict[str, str]) -> str:
    command = ("snakemake", *SLURM, TABLE, "--configfile", "config/smoke.yaml")
    output = project.run(*command, code=2, **environment)
    assert "Traceback" not in output
    assert not (project.path / "results").exists()
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "reason",
    [
        "Invalid account or account/partition combination specified",
        "No partition specified or system default partition",
    ],
)
def test_what_slurm_refuses_is_one_sentence_before_the_first_job(
    project: Project, reason: str
) -> None:
    environment = stand_in(project, sbatch=f"echo 'allocation failure: {reason}' >&2; exit 1")
    sentence = refused(project, environment)
    assert sentence.startswith(f"snakemake: Slurm refuses the job data: {reason}; it was asked ")
    assert "runtime=120, mem_mb=8000, threads=1: correct slurm/config.yaml" in sentence


def test_an_account_where_none_are_kept(project: Project) -> None:
    project.edit("slurm/config.yaml", "# slurm_account: my-group", "slurm_account: my-group")
    environment = stand_in(project, sbatch="")
    assert refused(project, environment) == (
        "snakemake: slurm_account is my-group, but this Slurm keeps no accounts; take it out of "
        "slurm/config.yaml"
    )


def test_jobs_that_a_killed_snakemake_left_are_stopped(project: Project) -> None:
    """Those of this folder, and before anything is submitted."""
    log = project.path / "bin/scancel.log"
    here = f"{project.path}"
    environment = stand_in(
        project,
        squeue=f"[ -e {log} ] || echo '12|rule_train_wildcards_0|{here}';"
        f"echo '13|rule_data|{Path(here).parent}'; case $* in *--jobs*) echo CANCELLED;; esac",
        scancel="echo $* >> {log}",
        sbatch="echo 'allocation failure: not now' >&2; exit 1",
    )
    assert "refuses the job data: not now" in refused(project, environment)
    assert log.read_text() == "12\n"
