"""Samples beside the nearest training images: which samples, and which images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.results_factory import Results
from numpy.typing import NDArray

from ctm_core.config import Cell
from ctm_core.data.dataset import Dataset
from ctm_core.report.figures import grids, neighbours
from ctm_core.report.figures.figure_inputs import Previews, read_training_images
from ctm_core.report.figures.neighbours import beside_nearest
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import save_tensors

Images = NDArray[np.uint8]
ONE_STEP = Cell("gamma", 1, None)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is on each picture: two strips, the classes, and the distances."""
    seen: list[dict[str, Any]] = []

    def watched(strips: Any, classes: Any, title: str, **looks: Any) -> Any:
        seen.append({"samples": strips[0], "training": strips[1], "classes": classes, **looks})
        return grids.sample_grid(strips, classes, title, **looks)

    monkeypatch.setattr(neighbours, "sample_grid", watched)
    return seen


def distances(samples: Images, training: Images) -> NDArray[np.float64]:
    """Of each sample to each training image, (n, m)."""
    differences = samples[:, None].astype(float) - training[None].astype(float)
    return np.asarray(np.sqrt((differences**2).mean(axis=(2, 3, 4))))


@pytest.mark.parametrize(("model", "name"), [("teacher", "NFE 35"), ("ctm", "NFE 1")])
def test_every_sample_is_above_its_nearest_training_image(
    model: str, name: str, digits: Dataset, drawn: list[dict[str, Any]], tmp_path: Path
) -> None:
    results = Results(tmp_path, sample_seeds=(0,))
    records = read_evaluations([results.evaluation(model)])
    beside_nearest(aggregate(records), Previews(records), digits, "title")
    (picture,) = drawn
    assert (picture["samples"].model, picture["samples"].cell) == (model, name)
    samples, training = picture["samples"].images, picture["training"].images
    assert samples.shape == (10, 1, 8, 8) and picture["classes"] == [*"0123456789"]
    between = distances(samples, digits.images)
    assert (training == digits.images[between.argmin(axis=1)]).all()
    assert picture["below"] == [f"{value:.1f}" for value in between.min(axis=1)]


@pytest.mark.parametrize(
    ("labels", "shown", "classes"),
    [([], [7, 3], []), ([1, 0], [3, 7], ["cat", "sea lion"]), ([2, 1], [3, 7], ["sea lion", "2"])],
)
def test_copies_in_colour_with_and_without_classes(
    labels: list[int],
    shown: list[int],
    classes: list[str],
    tmp_path: Path,
    drawn: list[dict[str, Any]],
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 16, 16), np.uint8)
    results = Results(tmp_path, sample_seeds=(0,))
    path = results.evaluation("ctm", {ONE_STEP: 9.0}).with_name("previews.safetensors")
    save_tensors(path, {ONE_STEP.label: torch.from_numpy(images[[7, 3]])}, {"labels": str(labels)})
    records = read_evaluations(results.evaluations)
    learned = Dataset(
        tmp_path, images, np.zeros(30, np.int64), {"class_names": ["cat", "sea lion"]}
    )
    rows = aggregate(records)
    assert beside_nearest(rows, Previews(records), learned, "title") is not None
    assert (drawn[0]["samples"].images == images[shown]).all()
    assert (drawn[0]["training"].images == images[shown]).all()
    assert (drawn[0]["below"], drawn[0]["classes"]) == (["0.0", "0.0"], classes)
    smaller = replace(learned, images=images[..., :8, :8])
    with pytest.raises(
        UserError, match=r"shape \[3, 8, 8\], but samples of ctm have \[3, 16, 16\]"
    ):
        beside_nearest(rows, Previews(records), smaller, "title")
    save_tensors(path, {}, {})
    assert beside_nearest(rows, Previews(records), learned, "title") is None, "no previews"


def test_other_training_images_are_refused(digits: Dataset, tmp_path: Path) -> None:
    results = Results(tmp_path, sample_seeds=(0,), fingerprint=digits.fingerprint)
    path = results.evaluation("ctm", {ONE_STEP: 9.0})
    records, folders = read_evaluations([path]), [digits.path]
    assert read_training_images([], records) == {}
    assert [*read_training_images(folders, records)] == ["digits"]
    with pytest.raises(UserError, match=r"both hold digits; give one of them"):
        read_training_images(folders * 2, records)
    converted = records[0].model_copy(update={"dataset_fingerprint": None})
    assert [*read_training_images(folders, [converted])] == ["digits"]
    other = records[0].model_copy(update={"dataset_fingerprint": "0" * 64})
    with pytest.raises(UserError, match="other images of digits than ctm of digits has learned"):
        read_training_images(folders, [other])
