"""One configuration file, and everything it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fixtures import tiny

from ctm_core.config.project import ROOT, locate, read_project
from ctm_core.runtime.errors import UserError


def write(folder: Path, experiment: str, **dataset: str) -> str:
    file = folder / f"{experiment}.yaml"
    changes = {"experiment": experiment, "evaluation.protocols": {"desk-digits": "all"}}
    section = tiny.describe(changes) | {"dataset": {"name": "digits"} | dataset}
    file.write_text(yaml.safe_dump(section), encoding="utf-8")
    return str(file)


def test_names_and_paths_stand_side_by_side(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine")
    project = read_project({"experiments": ["digits", mine]}, "both.yaml")
    assert list(project.experiments) == ["digits", "mine"]
    assert project.files["mine"] == mine
    assert Path(project.files["digits"]).resolve() == ROOT / "config/experiments/digits.yaml"
    assert set(project.protocols) == {"desk-digits", "desk-digits-lite0"}
    assert list(project.datasets) == ["digits"] and "inception" in project.assets


def test_a_file_of_the_working_directory_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(locate("config/config.yaml")).resolve() == ROOT / "config/config.yaml"
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("experiments: [digits]\n")
    assert locate("config/config.yaml") == "config/config.yaml"
    assert locate("nowhere.yaml") == "nowhere.yaml"


def test_mistakes_name_their_file(tmp_path: Path) -> None:
    one = write(tmp_path, "one", name="cifar10")
    other = write(tmp_path, "other", name="cifar10", source="elsewhere")
    for listed, sentence in (
        (["digits", "digits"], "list.yaml: duplicate experiment digits"),
        (
            [one, other],
            f"{other}: dataset.source of cifar10 is elsewhere, but another experiment has None; a "
            "data set has one source",
        ),
    ):
        with pytest.raises(UserError) as error:
            read_project({"experiments": listed}, "list.yaml")
        assert str(error.value) == sentence


def test_a_published_value_beside_no_row_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    text = (ROOT / "config/published.yaml").read_text(encoding="utf-8")
    wrong = text.replace(
        "experiment: cifar10-uncond, model: cd,", "experiment: digits, model: cm,"
    )
    (tmp_path / "config/published.yaml").write_text(wrong, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_project({"experiments": ["digits"]}, "list.yaml")
    assert str(error.value) == (
        "config/published.yaml: cd-cifar10-retrained-1 names digits cm "
        "gamma/nfe-1/gamma-none, but the experiment has the models ctm, ctm_nodsm, ctm_gan, cd, "
        "ctm_scratch, teacher only; correct its `ours`, or remove it"
    )
