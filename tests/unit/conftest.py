"""Things made once for all unit tests: prepared digits, a tiny teacher, a tiny student."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from fixtures import offline, tiny
from fixtures.tiny import Trained

from ctm_core import cli
from ctm_core.config.dag import FEATURE_THREADS
from ctm_core.config.protocols import load_protocol
from ctm_core.data.dataset import Dataset, prepare
from ctm_core.evaluation.metrics.reference import write_reference
from ctm_core.runtime.threads import use_threads
from ctm_core.training import jobs


@pytest.fixture(autouse=True, scope="session")
def _no_syncs() -> Iterator[None]:
    """See :func:`fixtures.tiny.without_syncs`; test_files.py asks for the real thing."""
    real = os.fsync
    tiny.without_syncs()
    yield
    os.fsync = real


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves this machine; those of fetching connect to a server of their own."""
    away = offline.watch(monkeypatch)
    yield
    assert not away, f"connections to {away}"


@pytest.fixture(autouse=True)
def _plain_torch() -> Iterator[None]:
    """One thread and gradients, whatever an earlier test or a training left behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.enable_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The training split of digits, prepared."""
    return prepare("digits", "train", None, tmp_path_factory.mktemp("data") / "digits")


def _only_run(runs: Path, model: str) -> Path:
    (run,) = (runs / "tiny" / model / "seed-0").glob("????????????")
    return run


@pytest.fixture(scope="session")
def teacher(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The teacher of the tiny experiment."""
    folder = tmp_path_factory.mktemp("teacher")
    weights = jobs.train_teacher(
        tiny.experiment(), digits, output=folder / "out", runs=folder / "runs"
    )
    return Trained(weights, _only_run(folder / "runs", "teacher"))


@pytest.fixture(scope="session")
def student(
    digits: Dataset, teacher: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """The student `ctm` of the tiny experiment."""
    folder = tmp_path_factory.mktemp("student")
    weights = jobs.train_student(
        tiny.experiment(),
        "ctm",
        digits,
        teacher.weights,
        output=folder / "out",
        seed=0,
        runs=folder / "runs",
    )
    return Trained(weights, _only_run(folder / "runs", "ctm"))


@pytest.fixture(scope="session")
def references(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reference statistics of the tiny experiment's protocols."""
    folder = tmp_path_factory.mktemp("references")
    use_threads(FEATURE_THREADS)  # as the verb that makes them
    made = []
    for protocol in (tiny.PROTOCOL, tiny.POOLED):
        file = folder / f"{protocol['name']}.yaml"
        file.write_text(yaml.safe_dump(protocol), encoding="utf-8")
        made.append(folder / f"{protocol['name']}.safetensors")
        write_reference(made[-1], load_protocol(file), digits)
    return made


@pytest.fixture
def ctm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tiny.Ctm:
    """The command's ``main`` in this process; an exception that escapes it fails the test."""

    def run(*arguments: str | Path) -> tiny.Ended:
        monkeypatch.setattr(sys, "argv", ["ctm", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        handler = signal.getsignal(signal.SIGINT)
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGINT, handler)  # an ending command ignores it
        captured = capsys.readouterr()
        return tiny.Ended(code, captured.out, captured.err)

    return run
