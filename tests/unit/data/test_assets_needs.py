"""Which files a config needs, and who of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fixtures.tiny import Ended

from ctm_core.config import read_yaml
from ctm_core.data import assets
from ctm_core.data.assets.needs import needs
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "config/paper.yaml"


def test_the_paper_needs_what_the_list_says() -> None:
    listed = {
        name
        for name, asset in assets.load(ROOT / "config/assets.yaml").items()
        if set(asset.needed_by) & set(read_yaml(PAPER)["experiments"])
    }
    found = needs(PAPER)
    assert set(found) == listed
    assert found["edm-cifar10-cond"] == ("cifar10-cond",)
    assert found["inception"] == ("protocol edm-cifar10", "protocol adm-imagenet64")
    assert found["vgg16"] == ("cifar10-uncond", "cifar10-cond", "cifar10-scratch", "imagenet64")
    assert found["ilsvrc2012"] == ("imagenet64",)


def test_one_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source of one's own makes the data set's file needless, for the reference too."""
    monkeypatch.chdir(tmp_path)
    section = yaml.safe_load((ROOT / "config/experiments/cifar10-uncond.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(section))
    assert needs("mine.yaml")["cifar10"] == ("cifar10-uncond",)
    protocol = yaml.safe_load((ROOT / "config/protocols/edm-cifar10.yaml").read_text())
    protocol |= {"reference": {"dataset": "cifar10"}, "metrics": ["fd"]}
    (tmp_path / "config/protocols").mkdir(parents=True)
    (tmp_path / "config/protocols/edm-cifar10.yaml").write_text(yaml.safe_dump(protocol))
    found = needs("mine.yaml")
    assert found["cifar10"] == ("cifar10-uncond", "protocol edm-cifar10")
    assert "edm-reference-cifar10" not in found
    section["dataset"]["source"] = "/somewhere"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(section))
    assert "cifar10" not in needs("mine.yaml")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctm: Callable[..., Ended]
) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", "files")
    ended = ctm("assets", "--config", "config/paper.yaml")
    lines = [line.split(None, 1) for line in ended.stdout.splitlines() if line]
    rows = {line[0]: line[1] for line in lines}
    assert rows["inception"].endswith("protocol edm-cifar10, protocol adm-imagenet64")
    assert "edm-reference-imagenet64" not in rows
    told = json.loads(ctm("assets", "--config", "config/paper.yaml", "--json").stdout)
    by_name = {facts["name"]: facts for facts in told}
    assert by_name["edm-cifar10-uncond"]["needed_by"] == ["cifar10-uncond"]
    assert {facts["state"] for facts in told if facts["kind"] != "package"} == {"missing"}
    both = ctm("assets", "--config", "config/paper.yaml", "--needed-by", "digits")
    assert both.code == 2 and "not both" in both.stderr
    (tmp_path / "config/assets.yaml").write_text("assets: {}\n")
    ended = ctm("assets", "--config", "config/paper.yaml")
    assert ended.code == 2 and "there is no asset" in ended.stderr


def test_a_config_with_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("experiments: [nowhere]\n")
    with pytest.raises(UserError, match=r"config/experiments/nowhere\.yaml is missing"):
        needs(tmp_path / "some.yaml")
