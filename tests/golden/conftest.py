"""The golden suite runs every network case in float32 and in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from . import reference


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> torch.dtype:
    """Dtype of the networks in a run."""
    return request.param


@pytest.fixture(autouse=True)
def _plain_torch() -> Iterator[None]:
    """Gradients on, default dtype float32, whatever an earlier test left behind."""
    torch.set_default_dtype(torch.float32)
    with torch.enable_grad():
        yield


def pytest_report_header() -> str:
    """Say which set is checked."""
    return f"golden values: {reference.folder()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the golden files that no test of this session has read."""
    unread = [name for name in reference.CASES if name not in reference.loaded]
    if unread and reference.loaded:
        terminalreporter.write_line(f"golden files that no test read: {', '.join(unread)}")
