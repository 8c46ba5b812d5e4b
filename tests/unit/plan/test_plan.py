"""`ctm plan`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import tiny
from fixtures.plan import SPEED
from fixtures.tiny import Ended, Trained

from ctm_core.plan import plan
from ctm_core.plan.printout import clock, count, describe, hours, size, table
from ctm_core.runtime.files import write_json

Run = Callable[..., Ended]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow's configuration of the tiny experiment in a folder without results."""
    changes = {"evaluation.protocols": {"desk-smoke": "all"}}
    tiny.write_experiment(tmp_path / "tiny.yaml", changes)
    (tmp_path / "mine.yaml").write_text("experiments: [tiny.yaml]\n")
    write_json(tmp_path / "speed.json", SPEED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", "nowhere")
    return tmp_path / "mine.yaml"


def edit(config: Path, **changes: Any) -> None:
    file = config.parent / "tiny.yaml"
    described = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        place = described
        for part in path:
            place = place[part]
        place[last] = value
    file.write_text(yaml.safe_dump(described))


def test_the_plan_is_printed_and_written(ctm: Run, config: Path) -> None:
    ended = ctm(
        *("plan", "--configfile", "mine.yaml", "--speed", "speed.json", "--json", "plan.json")
    )
    assert (ended.code, ended.stderr) == (0, "")
    told = json.loads((config.parent / "plan.json").read_text())
    assert told["jobs"] == {
        "data": 1,
        "evaluate": 3,
        "reference": 1,
        "table": 1,
        "teacher_tiny": 1,
        "train_tiny_ctm": 1,
    }
    assert f"{sum(told['jobs'].values())} jobs for results/table.csv" in ended.stdout
    each = next(e for e in told["estimates"] if e["job"] == "tiny ctm seed 0")
    assert set(each["passes"]) == {"teacher", "student", "target"}
    assert told["hours"]["gpu"] == 0 < told["hours"]["cpu"]
    assert 0 < told["hours_of_longest_chain"] < told["hours"]["cpu"]
    # Each job of these starts a process of its own, in three seconds by the fixture's speeds.
    working = sum(e["device_seconds"] for e in told["estimates"])
    starting = 3 * len(told["estimates"])
    assert working + starting == pytest.approx(3600 * told["hours"]["cpu"])
    assert told["missing"] == {} and told["comparisons"] == []
    command = "snakemake --cores all --configfile mine.yaml -- results/table.csv"
    assert told["commands"] == {"machine": command}
    assert ended.stdout.endswith(f"\n\nRun: {command}\n")
    assert "an abacus, 1 threads" in ended.stdout


def test_one_experiment_is_a_configuration_too(config: Path) -> None:
    speed = config.parent / "speed.json"
    listed, alone = plan(config, speed=speed), plan(config.parent / "tiny.yaml", speed=speed)
    assert alone.to_json()["jobs"] == listed.to_json()["jobs"]
    assert alone.operations == listed.operations


def test_gpus_have_a_cluster_and_hours_of_their_own(config: Path) -> None:
    share = {"gpus": 2, "processes": 2, "memory_gb": 4, "hours": 1}
    edit(config, resources={"training": share})
    made = plan(config, speed=config.parent / "speed.json", target="all")
    assert made.hours["gpu"] > 0 and made.hours["cpu"] > 0
    assert made.commands == {
        "cluster": f"snakemake --profile slurm --configfile {config} -- all",
        "machine": f"snakemake --cores all --resources gpu=2 --configfile {config} -- all",
    }
    text = describe(made)
    assert "Give --device-speed" in text and "of GPU jobs and" in text
    fast = plan(config, speed=config.parent / "speed.json", device_speed="100x")
    # Both GPUs are held while the process starts, which no GPU makes faster.
    starting = sum(2 * 3.0 for each in made.estimates if each.gpus) / 3600
    work = (made.hours["gpu"] - starting) / 100
    assert fast.hours["gpu"] == pytest.approx(work + starting)
    assert "on a device of 100x (an abacus, 1 threads is 1x)" in describe(fast)


def test_missing_files_are_named_with_who_reads_them(config: Path) -> None:
    edit(config, teacher={"asset": "edm-cifar10-uncond"})
    made = plan(config, speed=config.parent / "speed.json")
    assert made.missing == {"edm-cifar10-uncond": ["edm-cifar10-uncond"]}
    assert "1 external files are missing" in describe(made)
    # Converted once, the file may go.
    folder = config.parent / "results/teachers/edm-cifar10-uncond"
    folder.mkdir(parents=True)
    for name in ("weights.safetensors", "provenance.json"):
        (folder / name).touch()
    again = plan(config, speed=config.parent / "speed.json")
    assert again.missing == {} and again.finished == 1
    assert "1 have their results here" in describe(again)


def test_a_finished_run_stands_beside_its_prediction(config: Path, student: Trained) -> None:
    folder = config.parent / "results/tiny/ctm/seed-0"
    folder.mkdir(parents=True)
    for name in ("training.json", "speed.json"):
        (folder / name).write_bytes((student.folder / name).read_bytes())
    made = plan(config, speed=config.parent / "speed.json", results=config.parent / "results")
    text = describe(made)
    lines = [line.split() for line in text.splitlines() if "tiny ctm seed 0  " in line]
    assert [line[4:6] for line in lines if "passes:" in line] == [
        ["passes:", name] for name in ("student", "target", "teacher")
    ]
    assert "Predicted, and measured by the run that is here, on " in text
    told = made.to_json()["comparisons"]
    assert {each["what"] for each in told} >= {"seconds", "passes: teacher"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--config", "none.yaml"], "none.yaml"),
        (["--speed", "none.json"], "none.json is missing; make it by `python benchmarks/plan.py`"),
        (["--speed", "mine.yaml"], "mine.yaml"),
        (["--device-speed", "quick"], "--device-speed quick: give a factor on the measured"),
        (["--device-speed", "-4x"], "--device-speed -4x: give a factor on the measured"),
        (["--target", "coffee"], "'coffee' is not one of 'table', 'all'"),
        (["--json", "nowhere/plan.json/x/y"], ""),
    ],
)
def test_mistakes_are_one_sentence(
    ctm: Run, config: Path, options: list[str], sentence: str
) -> None:
    (config.parent / "nowhere").write_text("a file")
    given = ["plan", "--config", "mine.yaml", "--speed", "speed.json", *options]
    ended = ctm(*given)
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("ctm: ") and sentence in line


def test_a_mistake_in_the_experiment_is_one_sentence(ctm: Run, config: Path) -> None:
    edit(config, colour="red")
    ended = ctm("plan", "--config", "mine.yaml", "--speed", "speed.json")
    assert ended.code == 2 and ended.stdout == ""
    assert ended.stderr.startswith("ctm: tiny.yaml: ") and "colour" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_numbers_for_people() -> None:
    assert [count(n) for n in (0, 1234, 24_252, 597_333_333, 2.2e11)] == [
        "0",
        "1,234",
        "24.3 k",
        "597.3 M",
        "220.0 G",
    ]
    assert [clock(n) for n in (2, 120, 7200, 3.6e6)] == ["2.0 s", "2.0 min", "2.0 h", "1,000.0 h"]
    assert [hours(n) for n in (36, 3600 * 12.34, 3600 * 1234)] == ["0.01", "12.3", "1,234"]
    assert [size(n) for n in (5e5, 2e9, 3e12)] == ["0.5 MB", "2.0 GB", "3.0 TB"]
    assert table(["a", "b"], [["long", "1"]]) == "  a       b\n  long    1"
