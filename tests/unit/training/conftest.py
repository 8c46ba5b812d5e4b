"""Trainings that something happens to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.tiny import Trained
from fixtures.trainings import Case

from ctm_core.data.dataset import Dataset
from ctm_core.training import jobs

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
