"""Shows the log of moments at the end, whatever pytest captures."""

from __future__ import annotations

import pytest

LOG = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def shown(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of pytest's output."""
    return request.config.stash.setdefault(LOG, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if lines := config.stash.get(LOG, []):
        terminalreporter.section("moments at which a run was killed")
        for line in lines:
            terminalreporter.write_line(line)
