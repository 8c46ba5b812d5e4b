"""Shared by every suite; its place makes ``fixtures`` importable.

Suites that need a system package are marked ``@pytest.mark.system("name")``. They run under
``CTM_TEST_SYSTEM=1`` (``.ci/run`` installs the packages and sets it), where a missing package is a
failure; without the variable they are skipped, and the summary says which.
"""

import os
from pathlib import Path

import pytest
from fixtures.mounts import read_only  # noqa: F401
from fixtures.project import Project, copy_project
from fixtures.shared import made_once
from hypothesis import HealthCheck, settings

VARIABLE = "CTM_TEST_SYSTEM"
#: Folders and files of tests that take minutes.
LONG = {"system", "workflow", "kill", "processes", "test_gpu_benchmark.py"}

# Read when torch is loaded: workers share the cores, and threads of one that spin or wait for a
# core slow all of them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no fault.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def _suite(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("system")
    return str(mark.args[0]) if mark else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The long ones first: workers take the rest from each other, and end together.
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))
    if os.environ.get(VARIABLE) == "1":
        return
    for item in items:
        if suite := _suite(item):
            reason = f"system suite {suite}: needs {VARIABLE}=1 and the packages of .ci/run"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    mark = "system suite "
    named = {text.split(mark)[1].split(":")[0] for text in reasons if mark in text}
    if named:
        suites = ", ".join(sorted(named))
        terminalreporter.write_line(f"System suites skipped ({VARIABLE} is not 1): {suites}")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The smoke configuration, run once from nothing; read it, do not change it."""

    def make(folder: Path) -> None:
        project = copy_project(folder / "project")
        (project.path / "smoke.log").write_text(project.snakemake())

    return Project(made_once(tmp_path_factory, "finished", make) / "project")
