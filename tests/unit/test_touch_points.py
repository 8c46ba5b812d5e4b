"""One file each: a toy sampler, data set, objective and metric, seen everywhere.

The package is copied aside, the files of ``touch_points/`` are put in (the metric has one line in
the registry too), and the copy's own commands are run from a data set to a figure.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import tiny
from fixtures.project import ROOT

TOYS = Path(__file__).with_name("touch_points")
PLACES = {
    "halfway.py": "diffusion/samplers",
    "stripes.py": "data/readers",
    "straight.py": "training/objectives",
    "brightness.py": "evaluation/metrics",
}
REGISTRY = "config/metric_registry.py"
LINE = '    "brightness": Metric("moments", {"brightness": Family("Brightness gap")}),\n'

EXPERIMENT = tiny.describe(
    {
        "dataset": {"name": "stripes"},
        "teacher": None,
        "models": {
            "straight": {
                "objective": "straight",
                "grid_points": 4,
                "distance": "l2",
                "target_ema": 0.8,
                "training": tiny.TRAINING | {"steps": 4},
            }
        },
        "evaluation.samplers": {"straight": [{"sampler": "halfway", "nfe": [1, 2, 3]}]},
        "evaluation.protocols": {"toy": "all"},
    }
)
PROTOCOL = tiny.PROTOCOL | {
    "name": "toy",
    "reference": {"dataset": "stripes", "split": "train"},
    "metrics": ["brightness"],
}

#: Runs verbs of the command in one process, and writes down every text of every figure.
SCRIPT = """
import json, sys
from matplotlib.figure import Figure
from matplotlib.text import Text
from ctm_core.cli import main

texts, save = set(), Figure.savefig
def savefig(figure, *arguments, **options):
    texts.update(text.get_text() for text in figure.findobj(Text))
    return save(figure, *arguments, **options)
Figure.savefig = savefig
for words in json.load(open("verbs.json")):
    sys.argv = ["ctm", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
    print("-- end of", words[0])
json.dump(sorted(texts), open("texts.json", "w"))
"""

RESULTS = "results/tiny"
WEIGHTS = f"{RESULTS}/straight/seed-0/student.safetensors"
EVALUATION = f"{RESULTS}/straight/seed-0/step-4"
VERBS = [
    "data --dataset stripes --split train --output data",
    "train --config toy.yaml --model straight --seed 0 --data data"
    f" --output {RESULTS}/straight/seed-0",
    "features reference --protocol config/protocols/toy.yaml --data data --output toy.safetensors",
    f"evaluate --config toy.yaml --model straight --seed 0 --step 4 --weights {WEIGHTS}"
    f" --output {EVALUATION} toy.safetensors",
    f"sample {WEIGHTS} --sampler halfway --nfe 3 -n 4 --output samples.npy",
    f"table --claims config/claims.yaml --published config/published.yaml --output results"
    f" {EVALUATION}/evaluation.json",
    f"figures --output figures --training {RESULTS}/straight/seed-0/training.jsonl"
    f" {EVALUATION}/evaluation.json",
    "plan --config toy.yaml --target all --json plan.json",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the copied package makes of the toy experiment."""
    folder = tmp_path_factory.mktemp("touch")
    package = folder / "ctm_core"
    shutil.copytree(ROOT / "ctm_core", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, place in PLACES.items():
        assert not (package / place / name).exists()
        shutil.copy(TOYS / name, package / place / name)
    registry = package / REGISTRY
    text, end = registry.read_text(encoding="utf-8"), "}  # fmt: skip\n"
    assert text.count(end) == 1
    registry.write_text(text.replace(end, LINE + end), encoding="utf-8")

    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/speed.json", folder / "benchmarks/speed.json")
    shutil.copytree(ROOT / "config", folder / "config")
    protocol = folder / "config/protocols/toy.yaml"
    protocol.write_text(yaml.safe_dump(PROTOCOL), encoding="utf-8")
    (folder / "toy.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    (folder / "verbs.json").write_text(json.dumps([verb.split() for verb in VERBS]))
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (folder / "output.txt").write_text(ended.stdout)
    return folder


def test_a_data_set_is_one_file(made: Path) -> None:
    manifest = json.loads((made / "data/manifest.json").read_text())
    assert (manifest["name"], manifest["count"]) == ("stripes", 32)
    assert next(iter(rows(made)))["dataset"] == "stripes"


def test_an_objective_is_one_file(made: Path) -> None:
    record = json.loads((made / WEIGHTS).with_name("training.json").read_text())
    assert record["objective"] == "straight"
    # Its own count of passes: one of the student per sample and no other network.
    assert record["forward_passes"] == {"student": 4 * 8}
    plan = json.loads((made / "plan.json").read_text())
    (training,) = (job for job in plan["estimates"] if job["rule"] == "train_tiny_straight")
    assert training["passes"] == record["forward_passes"]


def test_a_sampler_is_one_file(made: Path) -> None:
    assert json.loads((made / "samples.json").read_text())["sampler"] == "halfway"
    assert {(row["sampler"], row["nfe"]) for row in rows(made)} >= {("halfway", "3")}
    assert "| halfway |" in (made / "results/table.md").read_text()
    assert any("halfway (toy)" in text for text in texts(made))


def test_a_metric_is_a_file_and_a_line(made: Path) -> None:
    with open(made / "results/runs.csv", newline="") as file:
        metrics = {row["metric"] for row in csv.DictReader(file)}
    assert "brightness_classifier_digits_24" in metrics
    assert all(row["brightness_classifier_digits_24_mean"] for row in rows(made))
    assert "brightness_classifier_digits_24 [low, high]" in (made / "results/table.md").read_text()
    assert any("Brightness gap" in text for text in texts(made))


def rows(made: Path) -> list[dict[str, Any]]:
    with open(made / "results/table.csv", newline="") as file:
        return list(csv.DictReader(file))


def texts(made: Path) -> list[str]:
    texts: list[str] = json.loads((made / "texts.json").read_text())
    return texts
