"""studies/reference/run.py: an experiment in another setting is the same experiment."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import yaml
from fixtures.project import ROOT

from ctm_core.config import Experiment, load_experiment


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = ROOT / "studies/reference/run.py"
    spec = importlib.util.spec_from_file_location("reference_study", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["digits", "digits-full"])
def test_a_setting_is_the_same_experiment(study: ModuleType, name: str) -> None:
    path = ROOT / f"config/experiments/{name}.yaml"
    original = load_experiment(path)
    section = study.derived(path, 2, "fp32", [0, 1, 2])
    made = Experiment.model_validate(yaml.safe_load(yaml.safe_dump(section)))
    models = ["teacher", *original.students]
    assert [made.train_hash(m) for m in models] == [original.train_hash(m) for m in models]
    assert {seed for model, seed in made.runs() if model != "teacher"} == {0, 1, 2}
    for model in models:
        assert {*original.cells(model)} <= {*made.cells(model)}
    assert {40, 80, 160} <= {*made.exported_steps("ctm")}
    cells = made.cells("ctm", 40)
    assert len(cells) == 2 and {*cells} <= {*original.cells("ctm")}
    assert made.threads == 2


def test_another_precision_is_another_hash(study: ModuleType) -> None:
    path = ROOT / "config/experiments/digits.yaml"
    made = Experiment.model_validate(study.derived(path, 1, "bf16", [0]))
    assert made.train_hash("ctm") != load_experiment(path).train_hash("ctm")
    assert made.evaluation.sampling_precision == "fp32"
