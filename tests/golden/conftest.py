"""The golden suite: one folder, read once, and what its cases have found so far."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from ctm_core import verification
from ctm_core.verification.golden import Folder

DEFAULT = Path(__file__).parent / "data"


def path() -> Path:
    """The golden set: the folder that CTM_GOLDEN names, else the committed copy of set A."""
    return Path(os.environ.get("CTM_GOLDEN") or DEFAULT)


@cache
def golden_folder() -> Folder:
    """That set; raises UserError where there is none, which fails a test and never skips it."""
    return Folder(path())


@cache
def outcome(case: verification.Case, precision: torch.dtype) -> verification.Result:
    """What a case finds in that set."""
    return verification.check(case, golden_folder(), precision)


def pytest_report_header() -> str:
    """Say which set is checked."""
    return f"golden values: {path()}"
