"""Every registered case of the golden sets, and that together they read all of them."""

from __future__ import annotations

import pytest
import torch

from ctm_core import verification
from ctm_core.verification import Case

from .conftest import golden_folder, methods_folder, outcome

RUNS = [(case, precision) for case in verification.cases() for precision in case.precisions]


def _id(value: Case | torch.dtype) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


@pytest.mark.parametrize(
    ("case", "precision"),
    RUNS,
    ids=[f"{_id(case)}:{_id(precision)}" for case, precision in RUNS],
)
def test_case(case: Case, precision: torch.dtype) -> None:
    result = outcome(case, precision)
    assert result.problem is None, result.problem
    assert result.checks, "the case checked nothing"
    failed = [str(check) for check in result.checks if not check.passed]
    assert not failed, "\n".join(failed)
    assert result.passed


def test_every_tensor_is_read() -> None:
    for case, precision in RUNS:  # most have run already
        outcome(case, precision)
    assert verification.uncovered(golden_folder()) == {}
    assert verification.uncovered(methods_folder()) == {}


def test_every_file_of_the_methods_has_cases() -> None:
    assert set(methods_folder().names()) == verification.METHODS
    assert verification.METHODS - {case.file for case, _ in RUNS} == set()
