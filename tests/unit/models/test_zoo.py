"""Trained weights that come with the project."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.project import ROOT

import ctm_core
from ctm_core.config import load_experiment
from ctm_core.models import zoo
from ctm_core.models.features import classifier
from ctm_core.models.weight_file import read_record
from ctm_core.models.zoo.__main__ import add
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_metadata, sha256_file

HASHES = {
    "digits-ctm": "f86c66c8ecd53e8070d89b88b40d325d20038266161cefae60fd7e98b79b1cd1",
    "digits-teacher": "4b8980339263c354be8e2e1d8349999e55e4497ad9914b6d253267c193ae8917",
    "photographs-ctm": "0046ba8f9d1017b55f60498bfbfc5fff739ecd7043d3754c1930ad057ee0143f",
}
#: By the name in a record: where it is, and the metric that a card quotes.
EXPERIMENTS = {
    "digits": ("config/experiments/digits.yaml", "fd_classifier_digits_1024"),
    "photographs": (
        "studies/photographs/config/experiments/photographs.yaml",
        "fd_efficientnet_lite0_1500",
    ),
}


def test_files_are_those_listed_and_small() -> None:
    files = sorted(zoo.file_of("digits-ctm").parent.glob("*.safetensors"))
    assert {file.stem: sha256_file(file) for file in files} == HASHES
    assert HASHES.keys() == zoo.MODELS.keys()
    assert sum(file.stat().st_size for file in files) <= 12e6
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert "models/zoo/*.safetensors" in built["setuptools"]["package-data"]["ctm_core"]


@pytest.mark.parametrize("name", HASHES)
def test_weights_are_those_of_a_committed_experiment(name: str) -> None:
    record = read_record(zoo.file_of(name))
    path, metric = EXPERIMENTS[record["experiment"]]
    experiment = load_experiment(ROOT / path)
    # `precision: auto` is what it was on the machine that trained.
    resolved = [experiment.resolved(precision) for precision in ("fp32", "bf16")]
    assert record["train_hash"] in {each.train_hash(record["model"]) for each in resolved}
    card = read_metadata(zoo.file_of(name))["card"]
    assert card.startswith(f"# {name}\n")
    assert record["train_hash"] in card and metric in card


def test_samples_are_of_the_class_that_is_asked_for() -> None:
    weights = Path(classifier.__file__).parent / "weights/classifier_digits.safetensors"
    network, _ = classifier.load_classifier(weights)
    asked = torch.arange(10).repeat(10)
    for name, nfe in (("digits-ctm", 1), ("digits-teacher", 17)):
        images = ctm_core.load(f"zoo:{name}").sample(100, nfe, labels=asked)
        seen = network(images.float()).argmax(dim=1)
        assert int((seen == asked).sum()) > 80


def test_the_command_takes_a_name(
    ctm: Callable[..., tiny.Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = ctm("sample", "zoo:digits-ctm", "-n", "4", "--batch-size", "4")
    assert ended.code == 0, ended
    assert np.load("samples.npy").shape == (4, 1, 8, 8)
    made = json.loads(Path("samples.json").read_text(encoding="utf-8"))
    assert made["checkpoint_sha256"] == HASHES["digits-ctm"]
    ended = ctm("sample", "zoo:photographs-ctm", "-n", "4", "--batch-size", "4", "--class", "dog")
    assert ended.code == 0, ended
    assert np.load("samples.npy").shape == (4, 3, 16, 16)


@pytest.mark.parametrize("name", ["", "digits", "../zoo/digits-ctm"])
def test_an_unknown_name_lists_the_known(ctm: Callable[..., tiny.Ended], name: str) -> None:
    sentence = f"zoo:{name}: no such model; the zoo has {', '.join(HASHES)}"
    with pytest.raises(UserError, match=sentence):
        ctm_core.load(f"zoo:{name}")
    ended = ctm("sample", f"zoo:{name}")
    assert (ended.code, ended.stdout) == (2, "")
    assert sentence in ended.stderr and "Traceback" not in ended.stderr


def test_added_from_a_finished_run(
    student: tiny.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "file_of", lambda name: tmp_path / f"{name}.safetensors")
    results = tmp_path / "results"
    made = results / zoo.MODELS["digits-ctm"].file
    made.parent.mkdir(parents=True)
    made.write_bytes(student.weights.read_bytes())
    (results / "table.csv").write_text(
        "experiment,model,sampler,gamma,nfe,n_samples,fd_a_64_mean,fd_a_64_ci95_low,"
        "fd_a_64_ci95_high,fd_a_32_mean\n"
        "tiny,ctm,gamma,0,2,64,1.2345,1,2,9\n"
        "tiny,cd,gamma,1,4,64,8,7,9,9\n"
    )
    copied = add("digits-ctm", results)
    card = read_metadata(copied)["card"]
    assert card.endswith("\n* gamma, NFE 2, γ 0: fd_a_64 1.23 [1, 2]\n")
    assert read_record(copied) == read_record(made)
    first, second = (load_tensors(file)[0] for file in (made, copied))
    assert all(torch.equal(first[key], second[key]) for key in (*first, *second))
