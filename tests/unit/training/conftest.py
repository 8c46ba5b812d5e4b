"""Trainings that something happens to, a distance, and images to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.distances import Images, build
from fixtures.tiny import Trained
from fixtures.trainings import Case

from ctm_core.data.dataset import Dataset
from ctm_core.training import jobs
from ctm_core.training.distance import Distance

ADVERSARY: dict[str, Any] = {
    "models.ctm.adversarial": {
        "discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8}
    }
}


@pytest.fixture(scope="session")
def judged(digits: Dataset, teacher: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The student of the tiny experiment, trained with a discriminator."""
    folder = tmp_path_factory.mktemp("judged")
    given: dict[str, Any] = {"output": folder / "out", "runs": folder / "runs", "seed": 0}
    weights = jobs.train_student(
        tiny.experiment(ADVERSARY), "ctm", digits, teacher.weights, **given
    )
    return Trained(weights, next((folder / "runs" / "tiny" / "ctm" / "seed-0").iterdir()))


@pytest.fixture(scope="session")
def perceptual32() -> Distance:
    """ST-LPIPS of images of side 32, in eval mode."""
    return build("stlpips_vgg", 32)


@pytest.fixture(scope="session")
def photographs() -> Images:
    """scikit-learn's two photographs, ``china`` and ``flower``: (1, 3, 427, 640)."""
    from sklearn.datasets import load_sample_image

    return {
        name: torch.from_numpy(load_sample_image(f"{name}.jpg").copy())
        .permute(2, 0, 1)[None]
        .float()
        .div(127.5)
        .sub(1)
        for name in ("china", "flower")
    }


@pytest.fixture
def gan_case(tmp_path: Path, digits: Dataset, teacher: Trained, judged: Trained) -> Case:
    return Case("ctm", tmp_path, digits, teacher.weights, judged, ADVERSARY)


@pytest.fixture(params=["teacher", "ctm"])
def case(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    digits: Dataset,
    teacher: Trained,
    student: Trained,
) -> Case:
    undisturbed = {"teacher": teacher, "ctm": student}[request.param]
    return Case(request.param, tmp_path, digits, teacher.weights, undisturbed)


@pytest.fixture
def ctm_case(tmp_path: Path, digits: Dataset, teacher: Trained, student: Trained) -> Case:
    return Case("ctm", tmp_path, digits, teacher.weights, student)
