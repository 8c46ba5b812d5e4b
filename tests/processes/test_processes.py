"""Two processes give one process's numbers, and whatever happens to one of them, none hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.tiny import KillAt, SetAt
from fixtures.workplace import Prepared, Workplace, prepare

from ctm_core.runtime.files import load_tensors, read_json

APPLY = "ctm_core.training.loop:Trainer._apply"
AGAIN = "run the same command again to continue"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def undisturbed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Two processes that nothing happened to."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"), prepared, 2)
    ended = place.train()
    assert ended.code == 0, ended
    assert ended.stdout == "out/student.safetensors\n"
    return place


@pytest.fixture
def pair(tmp_path: Path, prepared: Prepared) -> Workplace:
    return Workplace(tmp_path / "pair", prepared, 2)


def said(ended: tiny.Ended) -> list[str]:
    """The command's sentences, without what it shows of its progress."""
    lines = ended.stderr.replace("\r", "\n").splitlines()
    return [line.removeprefix("ctm: ") for line in lines if line.startswith("ctm: ")]


# -- the same numbers --------------------------------------------------------------------------


def assert_same_losses(one: Workplace, two: Workplace) -> None:
    """Every term of every step to what reordered float32 sums and their consequences leave."""
    ours, theirs = two.curve(), one.curve()
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert {"gan", "ctm", "dsm", "lambda_gan", "lambda_dsm"} <= set(ours[0])
    assert {"d_loss", "d_real", "d_fake"} <= set(ours[1])
    for mine, other in zip(ours, theirs, strict=True):
        assert set(mine) == set(other)
        for name, value in mine.items():
            assert value == pytest.approx(other[name], rel=1e-4, abs=1e-5), (mine["step"], name)
    assert one.record()["forward_passes"] == two.record()["forward_passes"]
    assert (one.record()["processes"], two.record()["processes"]) == (1, 2)
    first, second = (load_tensors(p.folder / "out" / "student.safetensors")[0] for p in (one, two))
    for name, tensor in first.items():
        difference = float((tensor - second[name]).norm() / (tensor.norm() + 1e-3))
        assert difference < 1e-3, name


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"micro_batch": 2},
        {"micro_batch": 2, "accumulation": "sum", "learning_rate": 5e-4},
    ],
    ids=["whole", "micro-batches", "summed"],
)
def test_two_processes_match_one(
    tmp_path: Path, prepared: Prepared, training: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {f"models.ctm.training.{k}": v for k, v in training.items()}
    changes |= {"models.ctm.training.snapshots": [], "models.ctm.training.steps": 8}
    places = []
    for processes in (1, 2):
        own = dict(changes)
        if "micro_batch" in training:
            # The heads' norms see the micro-batches of all processes together.
            own["models.ctm.training.micro_batch"] = 4 // processes
        places.append(Workplace(tmp_path / str(processes), prepared, processes, own))
        ended = places[-1].train()
        assert ended.code == 0, ended
    assert_same_losses(*places)


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"],
    "own": [],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_that_are_started_and_not_forked(
    undisturbed: Workplace, tmp_path: Path, launcher: str
) -> None:
    """As users start them: by torch's launcher, or by our command."""
    place = Workplace(tmp_path, undisturbed.prepared, 2)
    words = [*map(str, place.words()), *(["--processes", "2"] if launcher == "own" else [])]
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], "-m", "ctm_core.cli", *words],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"out/student.safetensors\n"
    assert b"Traceback" not in done.stderr
    assert place.trained() == undisturbed.trained()


# -- exit codes and sentences ------------------------------------------------------------------


def test_a_users_mistake_is_said_once(pair: Workplace) -> None:
    words = [word if word != pair.prepared.data else "nowhere" for word in pair.words()]
    ended = tiny.ctm([*words, "--processes", "2"], pair.folder)
    assert ended.code == 2
    assert len(said(ended)) == 1 and "nowhere" in said(ended)[0], ended
    assert "Traceback" not in ended.stderr


def test_a_batch_that_cannot_be_shared(tmp_path: Path, prepared: Prepared) -> None:
    for processes, changes, sentence in (
        (3, {}, "a batch of 8 cannot be shared by 3 processes; change batch_size or --processes"),
        (
            2,
            {"models.ctm.training.micro_batch": 4, "models.ctm.training.batch_size": 12},
            "micro_batch 4 does not divide the 6 samples of each of 2 processes; change",
        ),
    ):
        place = Workplace(tmp_path / str(processes), prepared, processes, changes)
        ended = place.train()
        assert ended.code == 2, ended
        (only,) = said(ended)
        assert sentence in only
        assert "Traceback" not in ended.stderr


def test_divergence(pair: Workplace) -> None:
    ended = pair.train(NanInOne(6))
    assert ended.code == 3, ended
    (only,) = said(ended)
    assert "the d_loss became nan at step 6 (the checkpoint of step 4 is kept)" in only
    assert read_json(pair.run / "failed.json")["exit_code"] == 3


class NanInOne:
    """NaN in the discriminator's loss at a step, on process 1 alone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        from ctm_core.training.adversary import Adversary

        original = Adversary.discriminator_loss

        def spoilt(made: Any, real: Any, fake: Any, batch: Any) -> Any:
            loss, terms = original(made, real, fake, batch)
            if batch.step + 1 == self.step and os.environ["RANK"] == "1":
                terms["d_loss"] = float("nan")
            return loss, terms

        Adversary.discriminator_loss = spoilt  # type: ignore[method-assign]


class RaiseAt:
    """An error that nobody expects, on one process."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self) -> None:
        def act(call: int) -> None:
            if call == 6 and os.environ["RANK"] == str(self.rank):
                raise RuntimeError("a cable was pulled")

        tiny.at_calls(APPLY, act)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unexpected_error_stays_visible_and_stops_the_others(
    pair: Workplace, rank: int
) -> None:
    began = time.monotonic()
    ended = pair.train(RaiseAt(rank))
    assert ended.code == 1, ended
    assert "RuntimeError: a cable was pulled" in ended.stderr
    assert f"process {rank} of 2 failed with exit code 1, as it says above" in said(ended)[-1]
    assert ("process 0 of 2 lost another one" in ended.stderr) == (rank == 1)
    assert time.monotonic() - began < 20
    assert pair.steps() == [4]


# -- deaths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_command(
    pair: Workplace, undisturbed: Workplace, rank: int
) -> None:
    began = time.monotonic()
    ended = pair.train(KillAt(APPLY, 6, rank=rank))
    assert ended.code == 75, ended
    assert said(ended)[-1].startswith(f"process {rank} of 2 was killed by SIGKILL; the last")
    assert said(ended)[-1].endswith(AGAIN)
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - began < 20
    assert pair.train().code == 0
    assert pair.trained() == undisturbed.trained()


def test_a_process_that_dies_before_they_have_met(pair: Workplace) -> None:
    """The other would wait for half an hour."""
    began, shorter = time.monotonic(), SetAt("ctm_core.runtime.launch:GRACE", 1.0)
    ended = pair.train(shorter, KillAt("ctm_core.data.dataset:open_dataset", 1, rank=1))
    assert ended.code == 75, ended
    assert "process 1 of 2 was killed by SIGKILL" in said(ended)[-1]
    assert time.monotonic() - began < 20


def test_a_process_that_hangs(pair: Workplace, undisturbed: Workplace) -> None:
    began = time.monotonic()
    ended = pair.train(
        SetAt("ctm_core.runtime.distributed:TIMEOUT", 3),
        SetAt("ctm_core.runtime.launch:GRACE", 0.5),
        SetAt("ctm_core.runtime.launch:LAST_GRACE", 0.5),
        KillAt(APPLY, 6, signal.SIGSTOP, rank=1),
    )
    assert ended.code == 75, ended
    (only,) = said(ended)
    assert only.startswith("process 0 of 2 lost another one; the last checkpoint is kept")
    assert time.monotonic() - began < 20
    assert pair.train().code == 0
    assert pair.trained() == undisturbed.trained()


def test_the_copies_end_with_the_command(pair: Workplace, undisturbed: Workplace) -> None:
    """``tiny.ctm`` waits for them; they keep what was trained, and free the lock."""
    ended = pair.train(KillAt(APPLY, 6, whom="parent"))
    assert ended.code == -signal.SIGKILL
    assert re.search(r"stopped by SIGTERM after step \d+; run the same", said(ended)[-1])
    assert pair.steps()[-1] > 4
    assert pair.train().code == 0
    assert pair.trained() == undisturbed.trained()


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGTERM, 5), (signal.SIGTERM, 6), (signal.SIGUSR1, 6), (signal.SIGINT, 7)],
)
def test_a_signal_to_the_command(
    pair: Workplace, undisturbed: Workplace, number: signal.Signals, step: int
) -> None:
    ended = pair.train(KillAt(APPLY, step, number, whom="parent"))
    assert ended.code == 75, ended
    (only,) = said(ended)
    assert re.search(rf"stopped by {number.name} after step \d+; {AGAIN}", only)
    assert pair.steps()[-1] > 4
    assert pair.train().code == 0
    assert pair.trained() == undisturbed.trained()


# -- another number of processes ---------------------------------------------------------------


def test_another_world_size(pair: Workplace, undisturbed: Workplace) -> None:
    assert pair.train(KillAt(APPLY, 6)).code == 75
    alone = Workplace(pair.folder, pair.prepared, 1)
    ended = alone.train()
    assert ended.code == 2
    (only,) = said(ended)
    assert "began with 2 processes, not 1" in only and "--allow-world-size" in only
    assert alone.train(extra=["--allow-world-size"]).code == 0
    assert alone.record()["exact"] is False
    assert [line["step"] for line in alone.curve()] == list(range(1, 13))
    passes = undisturbed.record()["forward_passes"]
    assert alone.record()["forward_passes"] == passes
