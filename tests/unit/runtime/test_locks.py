"""One owner at a time, whatever machine, clock and batch system it is on; dead owners give way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny

from ctm_core.runtime import locks, slurm
from ctm_core.runtime.errors import Interrupted
from ctm_core.runtime.locks import Lock

Owner = Callable[..., None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching takes no time, and nothing is known of Slurm."""
    monkeypatch.setattr(locks, "WATCH", 0.3)
    monkeypatch.setattr(slurm, "lives", lambda job: None)
    monkeypatch.setattr(slurm, "current_job", lambda: None)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """Leaves the file of another owner, by default on another machine and silent for an hour."""

    def leave(age: float = 3600, **changes: Any) -> None:
        values = locks._identity() | {"host": "node7", "machine": "another", "process": 123}
        (tmp_path / "owner.json").write_text(json.dumps(values | changes))
        then = time.time() - age
        os.utime(tmp_path / "owner.json", (then, then))

    return leave


def refusal(folder: Path) -> str:
    """The sentence of a refusal, which writes nothing."""
    (folder / "lock").touch()
    before = tiny.tree(folder)
    with pytest.raises(Interrupted) as refused:
        Lock(folder).acquire()
    assert tiny.tree(folder) == before
    assert refused.value.exit_code == 75
    return str(refused.value)


def take(folder: Path) -> None:
    """Take the folder and give it free."""
    lock = Lock(folder)
    lock.acquire()
    assert json.loads((folder / "owner.json").read_text())["process"] == os.getpid()
    lock.confirm()
    lock.release()
    assert {path.name for path in folder.iterdir()} == {"lock"}


def no_kernel_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_living_owner_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    if not kernel:
        no_kernel_locks(monkeypatch)
    lock = Lock(tmp_path)
    lock.acquire()
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
    assert f"stop it (kill {os.getpid()}; it writes a checkpoint first), then run" in sentence
    lock.release()
    take(tmp_path)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_dead_process_gives_way_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    if not kernel:
        no_kernel_locks(monkeypatch)
    code = (
        "import os, sys; from pathlib import Path; from ctm_core.runtime.locks import Lock;"
        "Lock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "owner.json").exists()
    take(tmp_path)


def test_a_process_of_the_same_number_is_another(tmp_path: Path, owner: Owner) -> None:
    here = {"machine": locks._machine(), "process": os.getpid()}
    owner(age=0, **here, started=locks._started(os.getpid()))
    assert f"process {os.getpid()} on node7" in refusal(tmp_path)
    owner(age=0, **here, started="1")
    take(tmp_path)


# -- another machine ----------------------------------------------------------------------------


def test_an_owner_elsewhere_lives_while_its_heart_beats(tmp_path: Path, owner: Owner) -> None:
    owner(age=locks.STALE / 2)
    sentence = refusal(tmp_path)
    assert "is in use by process 123 on node7; wait for it or stop it (kill 123 on node7;" in (
        sentence
    )


@pytest.mark.parametrize("age", [locks.STALE * 2, -3600.0])
def test_a_silent_owner_elsewhere_is_watched_and_gives_way(
    tmp_path: Path, owner: Owner, age: float, caplog: pytest.LogCaptureFixture
) -> None:
    owner(age=age)
    with caplog.at_level("INFO"):
        take(tmp_path)
    assert "watching whether its owner still lives" in caplog.messages[0]
    assert "taken over from process 123 on node7, which was last heard from" in caplog.messages[1]


def test_an_owner_whose_clock_is_wrong_is_heard_while_watched(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WATCH", 30.0)
    owner(age=3600)
    then = time.time() - 3599
    beat = threading.Timer(0.2, os.utime, (tmp_path / "owner.json", (then, then)))
    beat.start()
    assert "is in use by process 123 on node7" in refusal(tmp_path)
    beat.join()


def test_a_dead_machines_lock_may_outlive_it(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server still holds it; a living machine's is held too, and stays."""

    def flock(file: object, operation: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    owner(age=0)
    refusal(tmp_path)
    owner(age=3600)
    take(tmp_path)
    (tmp_path / "owner.json").write_text("")  # not written yet
    assert "in use by an unknown process" in refusal(tmp_path)


def test_a_file_cut_short_gives_way_when_silent(tmp_path: Path, owner: Owner) -> None:
    (tmp_path / "owner.json").write_text('{"process": 1')
    refusal(tmp_path)
    os.utime(tmp_path / "owner.json", (1, 1))
    take(tmp_path)


# -- Slurm --------------------------------------------------------------------------------------


def test_slurm_knows_better_than_the_heartbeat(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "lives", {"42@mini": True, "43@mini": False}.get)
    owner(age=3600, slurm_job="42@mini")
    sentence = refusal(tmp_path)
    assert "process 123 on node7 (Slurm job 42); wait for it or stop it (scancel 42;" in sentence
    owner(age=0, slurm_job="43@mini")
    take(tmp_path)
    owner(age=0, slurm_job="44@mini")  # Slurm does not answer
    refusal(tmp_path)


def test_a_job_that_was_queued_again_succeeds_itself(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "lives", lambda job: True)
    owner(age=0, slurm_job="42@mini")
    refusal(tmp_path)
    monkeypatch.setattr(slurm, "current_job", lambda: "42@mini")
    take(tmp_path)


def test_another_node_of_the_same_job_lives(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or another container on one node; the advice is not to cancel the job that one is in."""
    monkeypatch.setattr(slurm, "lives", lambda job: True)
    monkeypatch.setattr(slurm, "current_job", lambda: "42@mini")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    owner(age=0, slurm_job="42@mini")
    sentence = refusal(tmp_path)
    assert "process 123 on node7 (Slurm job 42); wait for it or stop it (kill 123 on node7;" in (
        sentence
    )
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    container = f"{locks._machine().partition(' ')[0]} pid:[1]"
    owner(age=0, slurm_job="42@mini", machine=container)
    assert "scancel" not in refusal(tmp_path)
    owner(age=3600, slurm_job="42@mini", machine=container)  # its process was killed
    take(tmp_path)


def test_a_restart_count_tells_a_requeued_job(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "current_job", lambda: "42@mini")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    owner(age=0, slurm_job="42@mini", slurm_restarts=1)
    refusal(tmp_path)
    owner(age=0, slurm_job="42@mini", slurm_restarts=0)
    take(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000, '{"process": "x"}', "[]"])
def test_an_owner_that_cannot_be_read_gives_way_when_silent(tmp_path: Path, content: str) -> None:
    (tmp_path / "owner.json").write_text(content)
    refusal(tmp_path)
    os.utime(tmp_path / "owner.json", (1, 1))
    take(tmp_path)


def test_a_job_in_an_owners_name_is_ended_with_care(tmp_path: Path, owner: Owner) -> None:
    owner(age=0, slurm_job="42")
    sentence = refusal(tmp_path)
    assert "(scancel 42; or end this process alone: kill 123 on node7; it writes" in sentence


# -- contenders ---------------------------------------------------------------------------------


def test_one_of_many_contenders_gets_a_dead_owners_folder(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_kernel_locks(monkeypatch)
    for _ in range(4):
        owner(age=3600)
        contenders = [Lock(tmp_path) for _ in range(8)]
        results: list[str] = []
        start = threading.Barrier(len(contenders))

        def contend(
            lock: Lock, start: threading.Barrier = start, results: list[str] = results
        ) -> None:
            start.wait()
            try:
                lock.acquire()
                results.append("got it")
            except Interrupted:
                results.append("refused")

        threads = [threading.Thread(target=contend, args=(lock,)) for lock in contenders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["got it"] + ["refused"] * (len(contenders) - 1)
        for lock in contenders:
            lock.release()
        assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_an_owner_that_was_thought_dead_ends(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    told = threading.Event()
    monkeypatch.setattr(os, "kill", lambda process, number: told.set())
    lock = Lock(tmp_path)
    lock.acquire()
    before = (tmp_path / "owner.json").stat().st_mtime_ns
    while (tmp_path / "owner.json").stat().st_mtime_ns == before:  # it beats
        time.sleep(0.01)
    assert not told.is_set()
    owner(age=0)
    with pytest.raises(Interrupted, match=r"was taken over by process 123 on node7 while this"):
        lock.confirm()
    assert told.wait(10)
    lock.release()
    assert json.loads((tmp_path / "owner.json").read_text())["process"] == 123


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        Lock(tmp_path).acquire()
    monkeypatch.undo()
    take(tmp_path)
