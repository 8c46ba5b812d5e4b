"""Trainings of a step or two."""

from __future__ import annotations

import pytest
from fixtures.one_step import Lab

from ctm_core.data.dataset import Dataset


@pytest.fixture(scope="session")
def lab(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), digits)
