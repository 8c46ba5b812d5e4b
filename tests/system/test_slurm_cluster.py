"""The workflow on a real Slurm of one node, through the literal command.

One run makes the whole smoke DAG; beside it, copies of the finished run in which one training is
made again meet what a cluster does to jobs. Whatever happens, the bytes are those of the
undisturbed run. Needs root and the packages of ``.ci/run``; see ``fixtures/mini_slurm.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from fixtures import mini_slurm
from fixtures.project import Project, copy_project
from fixtures.shared import base_of_all

pytestmark = pytest.mark.system("slurm")

HOLD = Path(__file__).parent / "hold"
FOLDER = "results/smoke/teacher/seed-0"
TEACHER = f"{FOLDER}/teacher.safetensors"
#: Literal; the target stands first, since --configfile takes every word that follows it.
COMMAND = ("snakemake", "--profile", "slurm")
SMOKE = ("--configfile", "config/smoke.yaml")
TRAIN = (*COMMAND, TEACHER, *SMOKE)
RESOURCES = "resources:\n  training: {limits}\n\nteacher:\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # The machine has room for one: a worker that takes some of these tests over waits for it.
    lock = FileLock(base_of_all(tmp_path_factory) / "slurm.lock")
    with lock, mini_slurm.running(tmp_path_factory.mktemp("slurm")):
        yield


@dataclass
class Training:
    """A copy of the finished run whose teacher is trained again on the cluster."""

    project: Project
    expected: dict[str, str]

    @property
    def mark(self) -> Path:
        return self.project.path / "held.json"

    def start(self) -> subprocess.Popen[str]:
        """Submit it; it holds after its first checkpoint until a signal arrives, but once."""
        python = os.pathsep.join([str(HOLD), os.environ.get("PYTHONPATH", "")])
        return self.project.start(
            *TRAIN,
            PYTHONPATH=python,
            CTM_HOLD_AT="*/checkpoints/step-00000020",
            CTM_HOLD_MARK=str(self.mark),
        )

    def held(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait until it holds; who does."""
        while not self.told():
            if process.poll() is not None:
                raise AssertionError(process.communicate()[0])
            time.sleep(0.1)
        return self.told()

    def told(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.mark.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    @property
    def run(self) -> Path:
        (run,) = self.project.path.glob("runs/smoke/teacher/seed-0/????????????")
        return run

    def starts(self) -> int:
        return int(json.loads((self.run / "run.json").read_text())["starts"])

    def ends_as_undisturbed(self, process: subprocess.Popen[str]) -> str:
        """Its output, once it has succeeded with the expected bytes."""
        output = finish(process)
        assert process.returncode == 0, output
        assert self.project.results(f"{FOLDER}/*.*") == self.expected
        assert json.loads((self.run / "training.json").read_text())["exact"]
        return output


@pytest.fixture
def training(cluster: None, finished: Project, tmp_path: Path) -> Training:
    return copied(finished, tmp_path / "training")


def copied(finished: Project, path: Path) -> Training:
    shutil.copytree(finished.path, path, symlinks=True)
    project = Project(path)
    expected = project.results(f"{FOLDER}/*.*")
    assert TEACHER in expected
    project.remove(FOLDER, "runs/smoke/teacher")
    return Training(project, expected)


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()[0]) from None


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# -- beside each other --------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def begun(
    cluster: None, finished: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Training, subprocess.Popen[str]]]]:
    """What mostly waits: the whole DAG, a time limit, a failing job, two processes."""
    folder = tmp_path_factory.mktemp("begun")
    found: dict[str, tuple[Training, subprocess.Popen[str]]] = {}
    try:
        whole = Training(copy_project(folder / "whole"), finished.results())
        command = (*COMMAND, "results/table.csv", *SMOKE)
        found["whole"] = whole, whole.project.start(*command)

        limited = copied(finished, folder / "limited")
        # Slurm may announce the limit up to a minute early: a slot trains for 60 to 120 s.
        limited.project.edit("slurm/config.yaml", "max_runtime: 1440", "max_runtime: 3")
        limited.project.edit("slurm/config.yaml", "USR1@300", "USR1@60")
        found["limited"] = limited, limited.start()

        failing = copied(finished, folder / "failing")
        failing.project.edit("slurm/config.yaml", "retries: 50", "retries: 2")
        experiment = "config/experiments/smoke.yaml"
        old = "    learning_rate: 2.0e-3\n    optimizer: adam"
        failing.project.edit(experiment, old, old.replace("2.0e-3", "1.0e+30"))
        found["failing"] = failing, failing.project.start(*TRAIN)

        pair = copied(finished, folder / "pair")
        limits = "{processes: 2, gpus: 2, memory_gb: 2, hours: 0.5}"
        pair.project.edit(experiment, "teacher:\n  tr", f"{RESOURCES.format(limits=limits)}  tr")
        pair.project.edit("slurm/config.yaml", "# gpu_type: a100", "gpu_type: fake")
        found["pair"] = pair, pair.start()
        yield found
    finally:
        for _, process in found.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


Begun = dict[str, tuple[Training, "subprocess.Popen[str]"]]


def test_two_processes_get_the_two_devices(begun: Begun) -> None:
    pair, process = begun["pair"]
    told = pair.held(process)
    assert told["CUDA_VISIBLE_DEVICES"] == "0,1"
    job = slurm("scontrol", "show", "job", told["SLURM_JOB_ID"])
    assert "TresPerJob=gres:gpu:fake:2" in job and "TimeLimit=00:30:00" in job
    assert re.search(r"MinMemoryNode=2000M", job)
    slurm("scancel", told["SLURM_JOB_ID"])  # the signal reaches the copies through the launcher
    output = finish(process)
    assert process.returncode == 0, output
    record = json.loads((pair.run / "training.json").read_text())
    assert record["processes"] == 2 and record["exact"]
    assert pair.starts() == 2


def test_a_cancelled_job_continues(training: Training) -> None:
    process = training.start()
    job = training.held(process)["SLURM_JOB_ID"]
    slurm("scancel", job)
    output = training.ends_as_undisturbed(process)
    assert training.told()["signal"] == signal.SIGTERM
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in output
    assert "smoke teacher seed 0 stopped" in output or "continue" in output
    assert training.starts() == 2


def test_a_killed_snakemake_leaves_no_second_writer(training: Training) -> None:
    process = training.start()
    held = training.held(process)
    process.kill()
    process.communicate()
    job = held["SLURM_JOB_ID"]
    # By hand, beside the job that goes on: refused by name.
    words = ["ctm", "teacher", "--config", "config/experiments/smoke.yaml", "--seed", "0"]
    words += ["--data", "results/data/digits/train", "--output", FOLDER]
    sentence = training.project.run(*words, code=75).splitlines()[-1]
    assert f"is in use by process {held['process']} on " in sentence
    assert f"(Slurm job {job}); wait for it or stop it (scancel {job};" in sentence

    locked = training.project.run(*TRAIN, code=None)
    assert "--unlock" in locked
    training.project.run(*COMMAND, "--unlock", *SMOKE)
    output = training.ends_as_undisturbed(training.start())
    assert f"Stopping Slurm jobs that a killed Snakemake left behind: {job};" in output
    assert training.told()["signal"] == signal.SIGTERM
    assert training.starts() == 2


def test_a_time_limit_is_announced_and_the_next_slot_continues(begun: Begun) -> None:
    limited, process = begun["limited"]
    limited.ends_as_undisturbed(process)
    assert limited.told()["signal"] == signal.SIGUSR1
    assert limited.starts() == 2


def test_a_failing_job_says_why_and_is_not_repeated(begun: Begun) -> None:
    failing, process = begun["failing"]
    output = finish(process)
    assert process.returncode == 1
    sentence = json.loads((failing.run / "failed.json").read_text())["message"]
    assert re.match(r"smoke teacher seed 0: the .* became (nan|inf) at step \d+ ", sentence)
    assert f"ctm: {sentence}" in output and "Traceback" not in output
    # Three attempts, of which one trained.
    logs = list(failing.project.path.glob("logs/slurm/rule_teacher_smoke/0/*.log"))
    assert len(logs) == 3
    assert not (failing.project.path / TEACHER).exists()
    assert not list(failing.run.glob("checkpoints/step-*"))
    (log,) = (failing.project.path / "logs/teacher").rglob("*.log")
    assert log.read_text().strip() == f"ctm: {sentence}"  # the last attempt said nothing else


def test_a_partition_that_is_not_there_is_one_sentence(training: Training) -> None:
    training.project.edit("slurm/config.yaml", "# slurm_partition: cpu", "slurm_partition: cpu")
    output = training.project.run(*TRAIN, code=2)
    sentence = output.strip().splitlines()[-1]
    assert sentence.startswith(
        "snakemake: Slurm refuses the job teacher_smoke: Invalid partition name specified; it "
        "was asked for slurm_partition=cpu, "
    )
    assert "Traceback" not in output


def test_the_whole_dag(begun: Begun) -> None:
    whole, process = begun["whole"]
    output = finish(process)
    assert process.returncode == 0, output
    assert whole.project.results() == whole.expected
    assert whole.project.results("results/table.csv")
    assert slurm("squeue", "--noheader") == ""


# -- the machine is left as it was --------------------------------------------------------------


def test_another_slurm_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "slurm.conf"
    theirs.write_text("ClusterName=theirs\n")
    with pytest.raises(RuntimeError, match="is not ours: this machine has a Slurm of its own"):
        mini_slurm.claim(tmp_path)
    assert theirs.exists()


@pytest.mark.parametrize("living", [True, False])
def test_links_of_a_killed_test_are_removed_and_those_of_a_living_one_kept(
    tmp_path: Path, living: bool
) -> None:
    old = tmp_path / "x" / mini_slurm.OURS
    old.mkdir(parents=True)
    (old / "slurmctld.pid").write_text(str(os.getpid() if living else 2**22 + 1))
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "plugstack.conf").touch()
    (etc / "slurm.conf").symlink_to(old / "slurm.conf")
    if living:
        with pytest.raises(RuntimeError, match="another test's Slurm runs"):
            mini_slurm.claim(etc)
    else:
        mini_slurm.claim(etc)
    assert (etc / "slurm.conf").is_symlink() is living
    assert (etc / "plugstack.conf").exists()
