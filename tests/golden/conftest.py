"""The golden suite: two folders, each read once, and what their cases have found so far."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from ctm_core import verification
from ctm_core.verification.golden import Folder

DEFAULT = Path(__file__).parent / "data"
METHODS = Path(__file__).parent / "methods"


def path() -> Path:
    """The golden set: the folder that CTM_GOLDEN names, else the committed copy of set A."""
    return Path(os.environ.get("CTM_GOLDEN") or DEFAULT)


def methods_path() -> Path:
    """The few-step methods' set: what CTM_GOLDEN_METHODS names, else the committed copy."""
    return Path(os.environ.get("CTM_GOLDEN_METHODS") or METHODS)


@cache
def golden_folder() -> Folder:
    """That set; raises UserError where there is none, which fails a test and never skips it."""
    return Folder(path())


@cache
def methods_folder() -> Folder:
    """The methods' set, likewise."""
    return Folder(methods_path())


def folder_of(case: verification.Case) -> Folder:
    """The set that has a case's file."""
    return methods_folder() if case.file in verification.METHODS else golden_folder()


@cache
def outcome(case: verification.Case, precision: torch.dtype) -> verification.Result:
    """What a case finds in its set."""
    return verification.check(case, folder_of(case), precision)


def pytest_report_header() -> str:
    """Say which sets are checked."""
    return f"golden values: {path()}, {methods_path()}"
