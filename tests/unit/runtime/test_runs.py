"""One owner at a time, one configuration a folder, and a memory of failures and inputs."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny

from ctm_core.runtime.errors import Diverged, Interrupted, UserError
from ctm_core.runtime.files import read_json
from ctm_core.runtime.runs import STATE, RunFolder

CONFIG = {"experiment": "tiny", "model": "ctm", "seed": 0, "train_hash": "a" * 64}
INPUTS = {"dataset": "d1", "teacher": "t1", "distance": None}


def folder(path: Path, **changes: Any) -> RunFolder:
    options: dict[str, Any] = {"config": CONFIG, "inputs": INPUTS} | changes
    return RunFolder(path, **options)


# -- lock (test_locks.py has its rules) ---------------------------------------------


def test_a_second_owner_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with folder(run):
        before = tiny.tree(tmp_path)
        assert f'"process": {os.getpid()}'.encode() in (before["run/owner.json"] or b"")
        for changes in ({}, {"attempt": 2}, {"inputs": {}}, {"config": CONFIG | {"seed": 1}}):
            with pytest.raises(Interrupted, match=rf"is in use by process {os.getpid()} on"):
                folder(run, **changes).__enter__()
        assert tiny.tree(tmp_path) == before
    assert not (run / "owner.json").exists()
    with folder(run):
        pass


@pytest.mark.parametrize("ending", [None, UserError("x"), KeyboardInterrupt()])
def test_the_lock_is_released_however_a_run_ends(
    tmp_path: Path, ending: BaseException | None
) -> None:
    try:
        with folder(tmp_path):
            if ending is not None:
                raise ending
    except BaseException as error:
        assert error is ending
    assert not (tmp_path / "owner.json").exists()
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [UserError("the file x is wrong"), Diverged("ctm became nan at step 3")]
)
def test_a_failure_is_recalled_by_later_attempts_and_cleared_by_the_first(
    tmp_path: Path, failure: UserError | Diverged
) -> None:
    with pytest.raises(type(failure)), folder(tmp_path):
        raise failure
    recorded = read_json(tmp_path / "failed.json")
    assert recorded == {"exit_code": failure.exit_code, "message": str(failure)}
    for attempt in (2, 3):
        with pytest.raises(type(failure), match=str(failure)):
            folder(tmp_path, attempt=attempt).__enter__()
    with folder(tmp_path, attempt=1):
        assert not (tmp_path / "failed.json").exists()
    with folder(tmp_path, attempt=2):
        pass


@pytest.mark.parametrize("name", ["failed.json", "run.json", "inputs.json", "config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", "1" * 5000])
def test_a_record_that_cannot_be_ours_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refused, folder(tmp_path, attempt=2) as run:
        run.restore_environment(1)
    assert name in str(refused.value)


def test_a_record_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"environment": {"threads": "two"}}')
    with (
        pytest.raises(UserError, match=r"run\.json is not a record of how"),
        folder(tmp_path) as run,
    ):
        run.restore_environment(1)


def test_a_full_disk_is_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="space"), folder(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoints/x")
    recorded = read_json(tmp_path / "failed.json")
    assert recorded["exit_code"] == 2
    assert recorded["message"].startswith("checkpoints/x: the disk is full; free some space")
    with pytest.raises(UserError, match="the disk is full"):
        folder(tmp_path, attempt=2).__enter__()


@pytest.mark.parametrize("ending", [Interrupted("later"), KeyboardInterrupt(), ValueError()])
def test_what_may_go_better_next_time_is_not_recorded(
    tmp_path: Path, ending: BaseException
) -> None:
    with pytest.raises(type(ending)), folder(tmp_path):
        raise ending
    assert not (tmp_path / "failed.json").exists()


# -- identity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("train_hash", "b" * 64), ("seed", 1), ("model", "ctm_nodsm"), ("experiment", "other")],
)
def test_another_run_is_refused_and_left_as_it_is(
    tmp_path: Path, key: str, value: str | int
) -> None:
    with pytest.raises(Diverged), folder(tmp_path):
        raise Diverged("its own failure")
    before = tiny.tree(tmp_path)
    for attempt in (1, 2):
        with pytest.raises(UserError, match=rf"belongs to another run: its {key} is .* --run"):
            folder(tmp_path, config=CONFIG | {key: value}, attempt=attempt).__enter__()
    after = tiny.tree(tmp_path)
    assert after.pop("lock") is not None
    before.pop("lock")
    assert after == before


def fill(run: Path) -> dict[str, bytes | None]:
    """Something of everything a run leaves behind."""
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    (run / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    for name in ("exports", "previews", "tensorboard"):
        (run / name).mkdir()
        (run / name / "file").write_text(name)
    (run / "training.jsonl").write_text('{"step": 1}\n')
    (run / "run.json").write_text("{}")
    kept = ("lock", "owner", "config")
    return {k: v for k, v in tiny.tree(run).items() if not k.startswith(kept)}


def test_changed_inputs_set_the_old_state_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with folder(tmp_path):
        old = fill(tmp_path)
    with folder(tmp_path):
        assert not list(tmp_path.glob("set-aside*"))
    with caplog.at_level(logging.WARNING), folder(tmp_path, inputs=INPUTS | {"teacher": "t2"}):
        assert tiny.tree(tmp_path / "set-aside-1") == old
        assert not any((tmp_path / name).exists() for name in (*STATE, "run.json"))
        assert read_json(tmp_path / "inputs.json")["teacher"] == "t2"
    (message,) = caplog.messages
    assert "teacher changed since this run began; its state is set aside in set-aside-1" in message
    with folder(tmp_path):  # and back again: nothing is overwritten
        assert tiny.tree(tmp_path / "set-aside-1") == old
        assert (tmp_path / "set-aside-2" / "inputs.json").exists()


def test_a_kill_while_setting_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder(tmp_path):
        old = fill(tmp_path)
    rename = os.rename
    moved = 0

    class Killed(BaseException):
        pass

    def killed(source: Path, target: Path) -> None:
        nonlocal moved
        moved += 1
        if moved % 3 == 0:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    changed = INPUTS | {"dataset": "d2"}
    for _ in range(10):
        try:
            with folder(tmp_path, inputs=changed):
                break
        except Killed:
            continue
    else:
        raise AssertionError("never done")
    assert moved > 3
    assert read_json(tmp_path / "inputs.json") == changed
    kept: dict[str, bytes | None] = {}
    for aside in tmp_path.glob("set-aside-*"):
        kept |= tiny.tree(aside)
    assert kept == old


# -- environment -------------------------------------------------------------------------------


def test_threads_are_fixed_at_the_first_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with folder(tmp_path) as run:
        run.restore_environment(2)
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with folder(tmp_path) as run:
        run.restore_environment(1)
        assert torch.get_num_threads() == 2
        assert run.exact
    assert read_json(tmp_path / "run.json")["starts"] == 2
    assert caplog.messages == []


@pytest.mark.parametrize("key", ["torch", "device", "threads"])
def test_another_environment_goes_on_inexactly(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    with folder(tmp_path) as run:
        run.restore_environment(1)
    recorded = read_json(tmp_path / "run.json")
    recorded["environment"][key] = 1 if key == "threads" else "another"
    (tmp_path / "run.json").write_text(json.dumps(recorded))
    if key == "threads":  # a machine that cannot give what the run began with
        monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with folder(tmp_path) as run:
        run.restore_environment(1)
        assert not run.exact
    (message,) = caplog.messages
    assert f"is resumed under another {key}" in message
    assert "exact: false" in message
    monkeypatch.undo()
    with folder(tmp_path) as run:  # once inexact, always
        run.restore_environment(1)
        assert not run.exact
