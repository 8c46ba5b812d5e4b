"""Bytes that a plan predicts against those of real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import Trained

from ctm_core.config import datasets
from ctm_core.config.dag import graph
from ctm_core.config.project import read_project
from ctm_core.config.protocols import Protocol
from ctm_core.data.dataset import Dataset
from ctm_core.evaluation.metrics.state import State
from ctm_core.plan import network_costs, storage
from ctm_core.runtime.files import write_json


def test_readers_tell_the_truth_about_their_images(digits: Dataset) -> None:
    shape = storage.data_shape("digits")
    assert shape is not None
    assert shape.image == (digits.channels, digits.resolution, digits.resolution)
    assert (shape.classes, shape.counts) == (digits.classes, {"train": len(digits)})
    for name in datasets.names():
        known = datasets.traits(name)
        assert set(known.counts) == (set() if known.own else set(known.splits)), name
        assert not known.class_names or len(known.class_names) == known.classes, name


def test_what_a_reader_does_not_say_stands_in_the_manifest(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = datasets.DatasetTraits(splits=("train",), flip=False)
    monkeypatch.setattr(datasets, "traits", lambda name: silent)
    assert storage.data_shape("digits", tmp_path) is None
    folder = tmp_path / "results/data/digits/train"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes((digits.path / "manifest.json").read_bytes())
    assert storage.data_shape("digits", tmp_path) == ((1, 8, 8), 10, {"train": 1797})
    write_json(folder / "manifest.json", {"shape": [3]})
    assert storage.data_shape("digits", tmp_path) is None


def test_disk_is_that_of_the_files(
    teacher: Trained, student: Trained, digits: Dataset, tmp_path: Path
) -> None:
    file = tiny.write_experiment(
        tmp_path / "tiny.yaml", {"evaluation.protocols": {"desk-smoke": "all"}}
    )
    project = read_project({"experiments": [str(file)]}, "some.yaml")
    made = project.experiments["tiny"]
    costs = {
        ("tiny", model): (
            network_costs.denoiser(
                made.network, made.diffusion, (1, 8, 8), 10, model != "teacher"
            ),
            None,
        )
        for model in ("teacher", "ctm")
    }
    shapes = {"digits": storage.data_shape("digits")}
    found = storage.on_disk(project, graph(project), costs, shapes)

    def size(*paths: Path) -> int:
        return sum(path.stat().st_size for path in paths)

    assert found["data"] == pytest.approx(size(*digits.path.glob("*.npy")), rel=0.01)
    weights = [path for t in (teacher, student) for path in t.folder.glob("*.safetensors")]
    # Names, shapes and records beside the numbers weigh something in files as small as these.
    assert found["weights"] == pytest.approx(size(*weights), rel=0.15)
    for model, trained in (("teacher", teacher), ("ctm", student)):
        kept = sorted((trained.run / "checkpoints").iterdir())[-1]
        predicted = storage.checkpoint(made, model, costs["tiny", model][0], None)
        assert predicted == pytest.approx(size(*kept.glob("*.safetensors")), rel=0.15)
    one = sum(storage.checkpoint(made, model, costs["tiny", model][0], None) for _, model in costs)
    assert found["runs"] == found["weights"] + 3 * one


@pytest.mark.parametrize("metrics", [["fd"], ["fd", "kid"]])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_cell_state_has_the_predicted_size(metrics: list[str], seeds: int) -> None:
    described: dict[str, Any] = tiny.PROTOCOL | {"metrics": metrics, "samples": 40}
    protocol = Protocol.model_validate(described)
    blocks = 8 if seeds == 1 else 1
    state = State(40, protocol.needs, blocks=blocks, keep=protocol.neighbours.rows)
    state.update({"features": torch.randn(40, 64)})
    stored = sum(tensor.nbytes for tensor in state.tensors().values())
    assert storage.state_bytes(protocol, 64, seeds) == pytest.approx(stored, rel=0.02)
