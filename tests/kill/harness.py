"""Kills a training and an evaluation at random moments, and keeps a log of them.

A moment is either the n-th call of some function, in the command or in one of its processes, or a
number of seconds after the start; both are drawn from a seed. What the command was doing when it
died is not what the moment aimed at but what it had noted itself (:class:`Trace`).

Training goes on from kill to kill. Where it ends before a moment has come, its results are
compared, everything is removed, and the moment waits for the next training.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixtures.tiny import Ended, KillAt, at_calls
from fixtures.workplace import Workplace

from ctm_core.runtime import checkpoint

CHECKPOINT, ADVERSARY = "ctm_core.runtime.checkpoint", "ctm_core.training.adversary:Adversary"
TRAINER = "ctm_core.training.loop:Trainer"
BATCHES = "ctm_core.training.batches:Batches"
EVALUATION = "ctm_core.evaluation"
#: By what a moment aims at: functions, and the first and last call that may be chosen.
PLACES: dict[str, list[tuple[str, int, int]]] = {
    "checkpoint": [
        (f"{CHECKPOINT}:save_tensors", 1, 12),  # between its six files
        (f"{CHECKPOINT}:sha256_file", 1, 6),
        (f"{CHECKPOINT}:write_record", 1, 2),
        ("os:rename", 1, 2),  # whole, under its preliminary name
        (f"{CHECKPOINT}:sync_folder", 1, 2),
    ],
    "discriminator": [
        (f"{TRAINER}._discriminator_step", 1, 4),
        (f"{ADVERSARY}.discriminator_loss", 1, 4),
        (f"{ADVERSARY}.advance", 2, 5),  # after its optimiser's step; the first is at the start
    ],
    "anywhere": [
        (f"{BATCHES}.next", 1, 12),
        (f"{TRAINER}._apply", 1, 12),
        ("ctm_core.training.ema:update", 1, 12),
        ("ctm_core.runtime.scalars:Scalars.write", 1, 12),
        (f"{CHECKPOINT}:prune", 1, 3),
        ("ctm_core.models.weight_file:export", 1, 2),
        ("ctm_core.training.jobs:_Job.deliver", 1, 1),
        ("shutil:copyfile", 1, 3),
    ],
    "evaluation": [
        (f"{EVALUATION}.cells:save_tensors", 1, 6),
        (f"{EVALUATION}.cells:scores", 1, 6),
        ("ctm_core.models.generation:Generator.batches", 1, 6),
        (f"{EVALUATION}.evaluate:write_previews", 1, 1),
        (f"{EVALUATION}.evaluate:write_evaluation", 1, 1),
    ],
}


@dataclass(frozen=True)
class Moment:
    """When to kill, and whom."""

    kill: KillAt | None = None
    after: float | None = None

    def __str__(self) -> str:
        if self.kill is None:
            return f"every process, {self.after:.2f} s after the start"
        who = "the command" if self.kill.whom == "parent" else f"process {self.kill.rank}"
        return f"{who}, call {self.kill.count} of {self.kill.place.removeprefix('ctm_core.')}"


@dataclass(frozen=True)
class Logged:
    """A kill: what was killed, what it was doing, how the command ended, what it left."""

    processes: int
    moment: Moment
    phase: str
    step: int
    code: int
    resumed_from: int


def draw(
    seed: int, aims: Sequence[str], processes: int = 1, seconds: float | None = None
) -> list[Moment]:
    """A moment for each aim; "delay" draws from 0 to ``seconds``."""
    chance = random.Random(seed)
    # Each place of an aim once before any comes again.
    decks: dict[str, list[tuple[str, int, int]]] = {aim: [] for aim in PLACES}
    moments = []
    for aim in aims:
        if aim == "delay":
            assert seconds is not None
            moments.append(Moment(after=chance.uniform(0.05, seconds)))
            continue
        deck = decks[aim]
        if not deck:
            deck += chance.sample(PLACES[aim], len(PLACES[aim]))
        place, low, high = deck.pop()
        # Files are process 0's; everywhere else any of them may die, or what has started them.
        everyone = processes > 1 and place.startswith(
            (TRAINER, BATCHES, ADVERSARY, "ctm_core.training.ema")
        )
        rank = chance.randrange(processes) if everyone else 0
        whom: Literal["self", "parent"] = "self"
        if processes > 1 and chance.random() < 0.3:
            whom = "parent"
        moments.append(Moment(KillAt(place, chance.randint(low, high), rank=rank, whom=whom)))
    return moments


@dataclass(frozen=True)
class Trace:
    """Lets a process note what it is doing in a file of its own, so that its end tells."""

    folder: Path

    def __call__(self) -> None:
        for place, phase, step in (
            (f"{TRAINER}._generator_step", "generator", lambda self: self.step + 1),
            (f"{TRAINER}._discriminator_step", "discriminator", lambda self: self.step + 1),
            (f"{CHECKPOINT}:save", "checkpoint", lambda root, step, *_: step),
            (f"{CHECKPOINT}:prune", "pruning", lambda *_: 0),
            ("ctm_core.training.jobs:_Job.deliver", "delivery", lambda *_: 0),
            (f"{EVALUATION}.evaluate:evaluate", "evaluation", lambda *_: 0),
        ):
            self._wrap(place, phase, step)

    def _wrap(self, place: str, phase: str, step: Callable[..., int]) -> None:
        module, _, name = place.partition(":")
        *holders, last = name.split(".")
        owner: Any = functools.reduce(getattr, holders, importlib.import_module(module))
        original = getattr(owner, last)

        @functools.wraps(original)
        def noting(*arguments: Any, **named: Any) -> Any:
            before = self.read(os.environ.get("RANK", "0"))
            self.write(phase, step(*arguments) or before[1])
            result = original(*arguments, **named)
            self.write("between", step(*arguments) or before[1])
            return result

        setattr(owner, last, noting)

    def write(self, phase: str, step: int) -> None:
        path = self.folder / f"trace-{os.environ.get('RANK', '0')}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(descriptor, f"{phase:>20} {step:>8}".encode(), 0)  # one write: never half of it
        os.close(descriptor)

    def seal(self, rank: str) -> None:
        """Keep what is noted now: a command's processes outlive it for a moment."""
        phase, step = self.read(rank)
        (self.folder / f"trace-{rank}-sealed").write_text(f"{phase} {step}")

    def read(self, rank: str) -> tuple[str, int]:
        """Phase and step that a process has noted last, or sealed."""
        sealed, path = (self.folder / f"trace-{rank}{end}" for end in ("-sealed", ""))
        path = sealed if sealed.exists() else path
        if not path.exists():
            return "start", 0
        phase, step = path.read_text().split()
        return phase, int(step)


@dataclass(frozen=True)
class Shot:
    """A kill at a call, with the phase of that very moment noted for good."""

    kill: KillAt
    trace: Trace

    def __call__(self) -> None:
        self.kill()

        def act(call: int) -> None:
            rank = os.environ.get("RANK", "0")
            if call == self.kill.count and rank == str(self.kill.rank):
                self.trace.seal(rank)

        at_calls(self.kill.place, act)  # outside of the kill's wrapper, hence before it


class Harness:
    """Kills at moments, one after the other, and compares whatever finishes.

    Parameters
    ----------
    place
        Where the disturbed runs live.
    undisturbed
        Where the same was done in peace.
    """

    def __init__(self, place: Workplace, undisturbed: Workplace) -> None:
        self.place, self.undisturbed = place, undisturbed
        self.trace = Trace(place.folder)
        self.log: list[Logged] = []
        self.finished = 0

    def train(self, moments: Sequence[Moment]) -> None:
        """Kill trainings, and finish the last."""
        for moment in moments:
            while not self._killed(moment, self.place.train):
                self._compare_training()
                self.place.clear()
        ended = self.place.train()
        assert ended.code == 0, ended
        self._compare_training()

    def evaluate(self, moments: Sequence[Moment]) -> None:
        """Kill evaluations of the trained weights, and finish the last."""
        for moment in moments:
            while not self._killed(moment, self.place.evaluate):
                self._compare_evaluation()
                self._forget_evaluation()
        ended = self.place.evaluate()
        assert ended.code == 0, ended
        self._compare_evaluation()

    def _killed(self, moment: Moment, run: Callable[..., Ended]) -> bool:
        """Whether the moment came before the end."""
        for path in self.place.folder.glob("trace-*"):
            path.unlink()
        # The trace notes a phase first, so that a kill at its beginning falls into it.
        shot = [] if moment.kill is None else [Shot(moment.kill, self.trace)]
        ended = run(*shot, self.trace, kill_after=moment.after)
        if ended.code == 0:
            return False
        several = moment.kill is not None and moment.kill.whom == "self"
        expected = 75 if several and self.place.processes > 1 else -9
        assert ended.code == expected, (str(moment), ended)
        assert "Traceback" not in ended.stderr, (str(moment), ended)
        rank = "0" if moment.kill is None else str(moment.kill.rank)
        phase, step = self.trace.read(rank)
        steps = [found.step for root in self._roots() if (found := checkpoint.newest(root))]
        left = max(steps, default=0)
        self.log.append(Logged(self.place.processes, moment, phase, step, ended.code, left))
        return True

    def _roots(self) -> Iterator[Path]:
        yield from self.place.folder.glob("runs/tiny/ctm/seed-0/????????????/checkpoints")

    def _compare_training(self) -> None:
        assert self.place.trained() == self.undisturbed.trained()
        self.finished += 1

    def _compare_evaluation(self) -> None:
        assert self.place.evaluated() == self.undisturbed.evaluated()
        self.finished += 1

    def _forget_evaluation(self) -> None:
        shutil.rmtree(self.place.folder / "evaluation")
        for folder in self.place.folder.glob("runs/tiny/ctm/seed-0/evaluation-*"):
            shutil.rmtree(folder)


def timed(run: Callable[[], Ended]) -> float:
    """Seconds of an undisturbed command."""
    began = time.monotonic()
    ended = run()
    assert ended.code == 0, ended
    return time.monotonic() - began


def table(log: Sequence[Logged]) -> str:
    """The log of moments, a line each."""
    head = (" #", "processes", "exit", "phase", "step", "left", "killed")
    rows = [
        (
            f"{i:2}",
            str(entry.processes),
            str(entry.code),
            entry.phase,
            str(entry.step),
            str(entry.resumed_from),
            str(entry.moment),
        )
        for i, entry in enumerate(log, start=1)
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = (
        "  ".join(f"{x:{w}}" for x, w in zip(row, widths, strict=True)) for row in (head, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)
