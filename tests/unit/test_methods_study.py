"""studies/methods: on digits and on CIFAR-10, every method trains at the cost of ctm."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import cifar
from fixtures.project import ROOT

from ctm_core.config import Experiment, layout, load_experiment, read_yaml, validated
from ctm_core.data import dataset
from ctm_core.data.readers import cifar10
from ctm_core.plan import plan
from ctm_core.training import jobs

STUDY = ROOT / "studies" / "methods"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, STUDY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def methods() -> Any:
    return script("methods")


@pytest.fixture(scope="module")
def on_cifar10() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDY)
        yield script("cifar10")


def test_the_search_is_of_equal_budgets(methods: Any) -> None:
    held = yaml.safe_load(methods.SEARCH.read_text(encoding="utf-8"))
    assert held == yaml.safe_load(yaml.safe_dump(methods.searched()))
    experiment, costing = validated(Experiment, held, methods.SEARCH), methods.Costing()
    for name, *_ in methods.candidates():
        spent = costing.operations(experiment, name)
        fork = experiment.student(name).init_from
        if fork is not None:
            spent += costing.operations(experiment, fork.model)
        assert spent == pytest.approx(methods.SEARCH_SHARE * costing.budget, rel=0.03), name


def test_the_search_has_at_most_six_candidates_and_a_seed_of_its_own(methods: Any) -> None:
    by_method = [method for _, method, *_ in methods.candidates()]
    assert all(by_method.count(method) <= 6 for method in methods.METHODS)
    assert methods.SEARCH_SEED not in (0, 1, 2)


# -- on CIFAR-10 ---------------------------------------------------------------------------------


def test_cifar10_has_the_list_of_digits_at_equal_budgets(methods: Any, on_cifar10: Any) -> None:
    held = read_yaml(on_cifar10.OUTPUT)
    assert held == json.loads(json.dumps(on_cifar10.written(on_cifar10.models())))
    experiment, costing = load_experiment(on_cifar10.OUTPUT), methods.Costing(on_cifar10.PAPER)
    assert set(experiment.students) == {*methods.METHODS, "tcm_stage1"}
    for name in methods.METHODS:
        spent = costing.operations(experiment, name)
        fork = experiment.student(name).init_from
        if fork is not None:
            share = fork.step / experiment.last_step(fork.model)
            spent += share * costing.operations(experiment, fork.model)
        assert spent == pytest.approx(costing.budget, rel=0.005), name


def test_cifar10_is_planned() -> None:
    made = plan(ROOT / "config/experiments/cifar10-methods.yaml", device_speed="60TFLOP/s")
    trained = [each for each in made.estimates if each.job.kind == "train"]
    assert len(trained) == 3 * 15 and made.hours["gpu"] > 1000


def test_cifar10_trains_with_every_number_small(
    on_cifar10: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {name: cifar.draw(16, 0) for name in ("data_batch_1", "test_batch")}
    md5 = cifar.write_folder(tmp_path / "source", drawn)
    batches = {"train": {"data_batch_1": md5["data_batch_1"]}, "test": {}}
    monkeypatch.setattr(cifar10, "BATCHES", batches)
    images = dataset.prepare("cifar10", "train", str(tmp_path / "source"), tmp_path / "train")

    small = read_yaml(on_cifar10.OUTPUT) | {"threads": 1, "seeds": [0]}
    small["network"] |= {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1}
    few = {"steps": 2, "batch_size": 4, "micro_batch": 2, "precision": "fp32"}
    often = {"checkpoint_every": 2, "preview_every": 0, "log_every": 1}
    small["teacher"] = {"training": few | often | {"optimizer": "adam", "ema": [0.9]}}
    for model in small["models"].values():
        model["training"] |= few | often | {"snapshots": [1], "micro_batch": None}
        if "init_from" in model:
            model["init_from"]["step"] = 1
        if "adversarial" in model:
            judges = {"backbones": ["tf_efficientnet_lite0"], "resolution": 64, "width": 8}
            model["adversarial"]["discriminator"] |= judges
        if "distance" in model:  # LPIPS needs a file
            model["distance"] = "pseudo_huber"
            del model["perceptual"]
    experiment = Experiment.model_validate(small)
    teacher = jobs.train_teacher(
        experiment, images, output=tmp_path / "teacher", runs=tmp_path / "runs"
    )
    for name, section in experiment.students.items():
        files, fork = {}, section.init_from
        if fork is not None:
            of = (experiment, fork.model, fork.step, 0)
            files["init"] = tmp_path / fork.model / Path(layout.live_weights(*of)).name
            files["init_average"] = tmp_path / fork.model / Path(layout.weights(*of)).name
        jobs.train_student(
            experiment,
            name,
            images,
            teacher if section.uses_teacher else None,
            seed=0,
            output=tmp_path / name,
            runs=tmp_path / "runs",
            **files,
        )
        log = (tmp_path / name / "training.jsonl").read_text(encoding="utf-8").splitlines()
        terms = [term for line in log for term in json.loads(line).items()]
        losses = [value for term, value in terms if term in ("loss", "d_loss")]
        assert len(losses) == 2 and all(map(math.isfinite, losses)), name
