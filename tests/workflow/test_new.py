"""Own pictures: from a folder to a table and a report by two commands (docs/own-images.md)."""

import csv
import shlex

import yaml
from fixtures.drawn import draw
from fixtures.project import Project


def test_from_pictures_to_a_report(project: Project) -> None:
    draw(project.path / "pictures", 50)
    output = project.run(
        *("ctm", "new", "mine", "--images", "pictures", "--resolution", "8"),
        *("--hours", "0.01", "--cores", "2"),
    )
    [line] = [line for line in output.splitlines() if line.startswith("Run: ")]
    # One model and a cell of each: what remains are the smallest numbers that `ctm new` gives.
    file = project.path / "config/experiments/mine.yaml"
    experiment = yaml.safe_load(file.read_text())
    del experiment["models"]["cd"]
    experiment["evaluation"] |= {
        "sample_seeds": [0],
        "samplers": {
            "teacher": [{"sampler": "heun", "nfe": [3]}],
            "ctm": [{"sampler": "gamma", "nfe": [1]}],
        },
    }
    file.write_text(yaml.safe_dump(experiment))
    project.run(*shlex.split(line.removeprefix("Run: ")))
    with (project.path / "results/table.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["model"], row["nfe"]) for row in rows] == [("teacher", "3"), ("ctm", "1")]
    assert all(float(row["fd_efficientnet_lite0_32_mean"]) > 0 for row in rows)
    assert all(float(row["memorisation_ratio_32_mean"]) > 0 for row in rows)
    report = (project.path / "results/report.html").read_text()
    assert "Training images" in report and "data:image/png" in report
