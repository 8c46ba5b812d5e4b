"""A working directory with everything that the verbs need."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.desk import Desk
from fixtures.tiny import Ctm, Trained

from ctm_core.data.dataset import Dataset


@pytest.fixture
def desk(tmp_path: Path, digits: Dataset, teacher: Trained, student: Trained, ctm: Ctm) -> Desk:
    return Desk(tmp_path, digits, teacher, student, ctm)
