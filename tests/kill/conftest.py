"""Shows the log of moments at the end, whatever pytest captures and whichever worker ran it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def shown(record_property: object) -> Iterator[list[str]]:
    """Lines for the end of pytest's output."""
    lines: list[str] = []
    record_property("moments", lines)  # type: ignore[operator]
    yield lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    lines = [
        line
        for report in reports
        for name, value in report.user_properties
        if name == "moments" and report.when == "call"
        for line in value
    ]
    if lines:
        terminalreporter.section("moments at which a run was killed")
        for line in lines:
            terminalreporter.write_line(line)
