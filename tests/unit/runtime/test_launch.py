"""How several processes are started and what their ends amount to; tests/processes runs them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

import pytest

from ctm_core.runtime import distributed, interrupts, launch
from ctm_core.runtime.errors import CtmError, UserError


@pytest.mark.parametrize(
    ("codes", "received", "expected", "sentence"),
    [
        # What process 0 says for all stands.
        ([2, 2], [], 2, ""),
        ([3, 3], [], 3, ""),
        ([75, 75], [signal.SIGTERM], 75, ""),
        # A mistake, though process 0 only lost the other; and the other way round.
        ([75, 2], [], 2, ""),
        ([2, 75], [], 2, ""),
        # A bug is no interruption.
        ([75, 1], [], 1, "process 1 of 2 failed with exit code 1"),
        ([1, 75, 75], [], 1, "process 0 of 3 failed with exit code 1"),
        # Killed from outside.
        ([75, -9], [], 75, "process 1 of 2 was killed by SIGKILL"),
        ([-11, 75], [], 75, "process 0 of 2 was killed by SIGSEGV"),
        ([0, -9], [], 75, "process 1 of 2 was killed by SIGKILL"),
        ([75, None], [], 75, ""),
        ([None, 75], [], 75, "one of 2 processes stopped"),
        # Stopped before they listened to signals.
        ([-15, -15], [signal.SIGTERM], 75, "stopped by SIGTERM"),
        ([1, -2], [signal.SIGINT], 75, "stopped by SIGINT"),
        ([3, 3], [signal.SIGTERM], 3, ""),
    ],
)
def test_what_ends_amount_to(
    codes: list[int | None], received: list[int], expected: int, sentence: str
) -> None:
    found = launch._verdict(codes, received)
    assert found.exit_code == expected
    assert str(found).startswith(sentence) and bool(str(found)) == bool(sentence)


class Started:
    """A process that ends when asked for the third time, or at a signal."""

    def __init__(self, environment: Mapping[str, str], code: int, deaf: bool = False) -> None:
        self.environment, self.code, self.deaf = environment, code, deaf
        self.pid, self.looks, self.signals = 0, 0, list[int]()

    def poll(self) -> int | None:
        self.looks += 1
        if signal.SIGKILL in self.signals or (self.signals and not self.deaf):
            return -self.signals[-1]
        return self.code if self.looks > 2 and not self.deaf else None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def start_as(
    monkeypatch: pytest.MonkeyPatch, codes: Mapping[int, int], deaf: int | None = None
) -> list[Started]:
    """Let processes end with the given codes; one of them may hear nothing but SIGKILL."""
    started: list[Started] = []

    def start(environment: Mapping[str, str], descriptor: int) -> Started:
        rank = int(environment["RANK"])
        os.fstat(descriptor)  # open
        started.append(Started(environment, codes.get(rank, 0), rank == deaf))
        return started[-1]

    monkeypatch.setattr(launch, "start", start)
    for name in ("GRACE", "LAST_GRACE", "POLL"):
        monkeypatch.setattr(launch, name, 0.01)
    for name in (launch.MARK, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return started


def test_every_copy_learns_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_as(monkeypatch, {})
    assert launch.launched(3) is True
    environments = [one.environment for one in started]
    assert [e["RANK"] for e in environments] == ["0", "1", "2"]
    assert {e["WORLD_SIZE"] for e in environments} == {"3"}
    assert {e[launch.MARK] for e in environments} == {str(os.getpid())}
    assert len({e["MASTER_PORT"] for e in environments}) == 1
    assert [launch.STORE in e for e in environments] == [True, False, False]
    assert all(not one.signals for one in started)


def test_nobody_survives_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_as(monkeypatch, {0: 1}, deaf=1)
    handlers = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with pytest.raises(CtmError, match="process 0 of 2 failed with exit code 1"):
        launch.launched(2)
    assert started[1].signals == [signal.SIGTERM, signal.SIGKILL]
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == handlers


@pytest.mark.parametrize("variable", [launch.MARK, "WORLD_SIZE", None])
def test_copies_start_none(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    started = start_as(monkeypatch, {})
    if variable is not None:
        monkeypatch.setenv(variable, "2")
    assert launch.launched(1 if variable is None else 2) is False
    assert not started


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_an_orphan_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command died before its copy could ask to be told."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setenv(launch.MARK, str(os.getppid()))
    launch.follow_parent()
    assert not sent and Library.calls == [(1, signal.SIGTERM)]
    monkeypatch.setenv(launch.MARK, "1" if os.getppid() != 1 else "2")
    launch.follow_parent()
    assert sent == [(os.getpid(), signal.SIGTERM)]


class Library:
    """The C library, asked and not obeyed: pytest is to survive its parent."""

    calls: list[tuple[int, int]] = []  # noqa: RUF012

    def prctl(self, option: int, value: int) -> None:
        self.calls.append((option, value))


# -- what the environment says ------------------------------------------------------------------

PLACE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any variable of a launcher."""
    for name in (*PLACE, "LOCAL_RANK", "CTM_TIMEOUT", launch.MARK, launch.TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "left", [{"RANK": "1"}, {"RANK": ""}, {"RANK": "x"}, {"RANK": "1", "WORLD_SIZE": "1"}]
)
def test_a_rank_without_others_means_nothing(
    environment: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    for name, value in (left | {"LOCAL_RANK": "1"}).items():
        environment.setenv(name, value)
    assert distributed.rank() == 0 and distributed.main() and not launch.is_secondary()
    with distributed.session():
        assert distributed.count() == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc in the environment is not a whole number from 1"),
        ({"WORLD_SIZE": "0"}, "correct WORLD_SIZE"),
        ({"WORLD_SIZE": "\x1b[2J"}, r"WORLD_SIZE=.x1b\[2J"),
        ({"RANK": ""}, "WORLD_SIZE=2 RANK= .*, but RANK missing; unset WORLD_SIZE"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": "2"}, "RANK must be below WORLD_SIZE"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR missing"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        ({"CTM_TIMEOUT": "10s"}, "CTM_TIMEOUT=10s"),
        ({"CTM_TIMEOUT": "nan"}, "CTM_TIMEOUT=nan"),
    ],
)
def test_a_place_that_cannot_be_is_named(
    environment: pytest.MonkeyPatch, changes: dict[str, str], named: str
) -> None:
    for name, value in (PLACE | changes).items():
        environment.setenv(name, value)
    with pytest.raises(UserError, match=named), distributed.session():
        raise AssertionError("joined")


def test_only_what_a_launcher_started_is_silent(environment: pytest.MonkeyPatch) -> None:
    for name, value in (PLACE | {"RANK": "1", "LOCAL_RANK": "1"}).items():
        environment.setenv(name, value)
    assert not launch.is_secondary()
    environment.setenv(launch.TORCHRUN, "none")
    assert launch.is_secondary()


def test_a_mark_that_is_none_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(launch.MARK, "yes")
    with pytest.raises(UserError, match="CTM_LAUNCHED=yes"):
        launch.follow_parent()
