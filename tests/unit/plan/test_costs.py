"""Time and memory of jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.plan import SPEED

from ctm_core.config.dag import graph
from ctm_core.config.project import Project, read_project
from ctm_core.plan.costs import Costs, Estimate
from ctm_core.plan.passes import expected
from ctm_core.plan.speeds import parse_device_speed, read_speed
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json

Made = Callable[..., tuple[Project, dict[str, Estimate]]]


@pytest.fixture
def estimated(tmp_path: Path) -> Made:
    """The tiny experiment's estimates, by the labels of its jobs."""

    def make(device: str | None = None, **changes: Any) -> tuple[Project, dict[str, Estimate]]:
        scored = {"evaluation.protocols": {"desk-smoke": "all"}}
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        file = tiny.write_experiment(tmp_path / "tiny.yaml", scored | dotted)
        project = read_project({"experiments": [str(file)]}, "some.yaml")
        write_json(tmp_path / "speed.json", SPEED)
        speed = read_speed(tmp_path / "speed.json")
        costs = Costs(project, speed, parse_device_speed(device))
        return project, {each.job.label: each for each in costs.of(graph(project))}

    return make


def test_a_training_costs_its_passes(estimated: Made) -> None:
    project, found = estimated(network__model_channels=4)
    each = found["tiny teacher seed 0"]
    made = project.experiments["tiny"]
    cost = Costs(project, read_speed(Path(project.files["tiny"]).parent / "speed.json"))
    network = cost.network(made, "teacher")
    assert each.operations == pytest.approx(12 * 8 * network.operations["train"])
    # Below the smallest network measured: 2e9 a second, and the update of every weight.
    assert network.operations["forward"] < 1e6
    updating = 12 * network.parameters * 1e-9
    assert each.seconds == pytest.approx(each.operations / 2e9 + updating)
    assert each.passes == expected(made, "teacher").by_network


def test_more_of_something_costs_more(estimated: Made) -> None:
    plain = estimated()[1]
    for changes in (
        {"models__ctm__grid_points": 8},
        {"models__ctm__training__batch_size": 16},
        {"models__ctm__dsm": {"adaptive": False}, "models__ctm__training__steps": 20},
        {"network__model_channels": 16},
    ):
        label = "tiny ctm seed 0"
        assert estimated(**changes)[1][label].seconds > plain[label].seconds, changes
    for changes in (
        {"evaluation__sample_seeds": [0, 1, 2]},
        {"evaluation__batch_size": 48},  # the second batch is padded
        {"evaluation__samplers__ctm": [{"sampler": "gamma", "nfe": [1, 2, 8], "gamma": [0, 1]}]},
        {"evaluation__likelihood": {"models": ["ctm"]}},
    ):
        label = "tiny ctm seed 0 step 12"
        assert estimated(**changes)[1][label].seconds > plain[label].seconds, changes


def test_a_faster_device_takes_less_and_several_share(estimated: Made) -> None:
    label = "tiny ctm seed 0"
    plain, fast = estimated()[1][label], estimated("4x")[1][label]
    assert fast.seconds == pytest.approx(plain.seconds / 4)
    known = estimated("1TFLOP/s")[1][label]
    assert known.seconds == pytest.approx(known.operations / 1e12)
    shared = {"training": {"gpus": 2, "processes": 2}}
    two = estimated("1TFLOP/s", resources=shared)[1][label]
    assert (two.gpus, two.processes) == (2, 2)
    assert two.seconds == pytest.approx(known.seconds)
    assert two.work == pytest.approx(known.seconds / 2)
    assert two.wall == pytest.approx(3.0 + two.work)


def test_memory_grows_with_what_stands_in_it(estimated: Made) -> None:
    label = "tiny ctm seed 0"
    plain = estimated()[1][label].memory
    assert plain > 1e8, "the process itself"
    wide = estimated(network__model_channels=32)[1][label].memory
    batch = estimated(models__ctm__training__batch_size=512)[1][label].memory
    micro = {"models__ctm__training__batch_size": 512, "models__ctm__training__micro_batch": 8}
    assert plain < wide and plain < batch
    assert estimated(**micro)[1][label].memory == pytest.approx(plain)


def test_a_data_set_of_unknown_size_is_one_sentence(
    estimated: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctm_core.plan.storage.data_shape", lambda name, root, own: None)
    with pytest.raises(UserError, match=r"tiny\.yaml: the size of the data set digits is not"):
        estimated()
