"""A sweep by `dvc exp run -S`, and what DVC shows of two versions: the numbers of the table."""

import json
import re
from pathlib import Path

import pytest
from fixtures.versions import EXPERIMENT, Versions


def means(table: list[dict[str, str]]) -> dict[str, float]:
    """The mean of every metric of every cell, by the name that it has in metrics.json."""
    found = {}
    for row in table:
        cell = f"{row['sampler']}/nfe-{row['nfe']}/gamma-{row['gamma'] or 'none'}"
        place = f"{row['experiment']}.{row['model']}.step-{row['step']}.{cell}.{row['protocol']}"
        for column, value in row.items():
            if column.endswith("_mean") and value:
                found[f"{place}.{column.removesuffix('_mean')}"] = float(value)
    return found


def test_metrics_and_parameters_of_two_versions(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    shown = json.loads(project.run("dvc", "metrics", "diff", "first", "second", "--json"))
    first, second = (means(table) for table in versions.tables)
    assert len(first) == len(second) == 9, "three cells with three metrics each"
    changed = [name for name in first if first[name] != second[name]]
    assert changed and all(name.startswith("tiny.ctm.") for name in changed)
    rows = shown["results/metrics.json"]
    assert rows.keys() == set(changed)
    for name in changed:
        assert rows[name]["old"] == pytest.approx(first[name], rel=1e-9)
        assert rows[name]["new"] == pytest.approx(second[name], rel=1e-9)

    shown = json.loads(project.run("dvc", "metrics", "show", "--json"))
    of_second = shown[""]["data"]["results/metrics.json"]["data"]["tiny"]
    assert of_second.keys() == {"teacher", "ctm"}

    shown = json.loads(project.run("dvc", "params", "diff", "first", "second", "--json"))
    [(key, values)] = shown[EXPERIMENT].items()
    assert key == "models.ctm.training.learning_rate"
    assert (values["old"], values["new"]) == (0.001, 0.004)


def test_plots_of_two_versions(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    page = tmp_path / "plots"
    project.run("dvc", "plots", "show", "--out", str(tmp_path / "one"))
    assert (tmp_path / "one" / "index.html").is_file()
    told = project.run("dvc", "plots", "diff", "first", "second", "--out", str(page))
    assert "failed" not in told
    pictures = {file.name for file in (page / "static").glob("*.png")}
    for kind in ("hero", "fd-nfe", "fd-gamma", "training"):
        assert {f"{v}_results_figures_tiny-{kind}.png" for v in ("first", "second")} <= pictures
    html = (page / "index.html").read_text(encoding="utf-8")
    column = "fd_classifier_digits_32_mean"
    for version, table in zip(("first", "second"), versions.tables, strict=True):
        assert f'"rev": "{version}"' in html
        for row in table:
            assert f'"{column}": "{row[column]}"' in html


def test_a_sweep(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    told = project.run(
        "dvc", "exp", "run", "--queue", "-S", f"{EXPERIMENT}:evaluation.sample_seeds=[1],[0,1]"
    )
    one, both = re.findall(r"Queued experiment '([\w-]+)'", told)
    ran = project.run("dvc", "exp", "run", "--run-all")
    # Each in a folder of its own, where what the change does not affect is found made.
    assert re.findall(r"^localrule (\w+):", ran, re.M).count("evaluate") == 4
    assert not re.findall(r"rule (?:teacher|train|data|reference)\w*:", ran)
    assert project.made() == versions.second, "the working directory is left alone"
    assert project.left() == {}

    [shown] = [
        found["experiments"]
        for found in json.loads(project.run("dvc", "exp", "show", "--json"))
        if found.get("experiments")
    ]
    seeds = {}
    for experiment in shown:
        [revision] = experiment["revs"]
        data = revision["data"]
        parameters = data["params"][EXPERIMENT]["data"]
        seeds[revision["name"]] = parameters["evaluation"]["sample_seeds"]
        assert data["metrics"]["results/metrics.json"]["data"]["tiny"]["ctm"]
    assert seeds == {one: [1], both: [0, 1]}

    project.run("dvc", "exp", "apply", both)
    assert {row["sample_seeds"] for row in project.table()} == {"0;1"}
    assert project.left() == {}
    weights = [name for name in versions.second if name.endswith("student.safetensors")]
    assert weights and all(project.made()[name] == versions.second[name] for name in weights)
