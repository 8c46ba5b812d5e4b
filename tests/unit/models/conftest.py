"""A network file of another project, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import foreign
from fixtures.foreign import DDPMPP

from ctm_core.diffusion.trajectory import Trajectory


@pytest.fixture(scope="session")
def edm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trajectory, Path]:
    """A class-conditional EDM pickle, its model, and the file that its source text would make."""
    folder = tmp_path_factory.mktemp("edm")
    made = foreign.model(DDPMPP | {"augment_dim": 9}, label_dim=10)
    path, canary = folder / "edm-tiny-cond-vp.pkl", folder / "canary"
    foreign.write_edm(path, made, foreign.edm_kwargs(made, augment_dim=9), canary)
    return path, made, canary
