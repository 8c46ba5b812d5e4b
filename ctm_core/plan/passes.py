r"""Forward passes of a training, by network, before it runs.

The objectives count images as they pass through each network
(:attr:`ctm_core.training.objective.Objective.evaluations`), and ``training.json`` keeps the sums
as ``forward_passes``. How many a sample takes depends on its draw alone: k, i and j of
:mod:`.schedule`. :func:`counts` says how many, and :func:`expected` takes the mean over

.. math::
    P(k) = \frac{2k}{M(M+1)}, \qquad i \sim U\{0, …, N-1-k\}, \qquad j \sim U\{i+k, …, N-1\}.

A Heun step is two passes of the teacher, also the last; maps that are the identity (u = s, or
s = sigma_min) take none. Since one k is drawn for a whole batch, sums scatter about their mean by

.. math::
    \operatorname{sd}^2 = n\,\bigl(B\,\mathbb E_k \operatorname{Var}[c \mid k]
        + B^2 \operatorname{Var}_k \mathbb E[c \mid k]\bigr)

over n steps of batch B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctm_core.config import Experiment, Student
from ctm_core.config.objective_traits import traits

__all__ = ["Mode", "Number", "Passes", "Use", "counts", "expected", "law"]

#: What follows a forward pass: nothing, the gradient to the input once or for each of two losses,
#: or that to the weights.
Mode = Literal["forward", "through", "twice", "train"]


class Use(NamedTuple):
    """A network and what is done with it."""

    network: str  #: teacher, student, target, perceptual or features
    mode: Mode


@dataclass(frozen=True)
class Number:
    """How many are expected, and by how much that scatters: a standard deviation."""

    mean: float
    deviation: float = 0.0

    def __add__(self, other: Number) -> Number:
        """The sum of two numbers that rise and fall together, as those of one draw do."""
        return Number(self.mean + other.mean, self.deviation + other.deviation)


@dataclass(frozen=True)
class Passes:
    """The passes of one training, in images.

    Attributes
    ----------
    uses
        By network and mode.
    steps
        Optimiser steps of the student.
    """

    uses: Mapping[Use, Number]
    steps: int

    @property
    def recorded(self) -> dict[str, Number]:
        """By the keys of ``forward_passes`` in training.json."""
        return self._summed(("student", "target", "teacher"))

    @property
    def further(self) -> dict[str, Number]:
        """Those of perceptual and feature networks, which no record counts."""
        return self._summed(("features", "perceptual"))

    def _summed(self, networks: tuple[str, ...]) -> dict[str, Number]:
        found: dict[str, Number] = {}
        for use, number in self.uses.items():
            if use.network in networks:
                found[use.network] = found.get(use.network, Number(0.0)) + number
        return found


#: Passes of one sample by its draw: arrays of equal shape.
Counts = dict[Use, NDArray[np.float64]]
Integers = NDArray[np.int64]


def law(student: Student) -> Iterator[tuple[float, int, Integers, Integers, NDArray[np.float64]]]:
    """Every draw: P(k), k, and for all pairs (i, j) of that k the arrays i, j and P(i, j | k)."""
    n, largest = student.grid_points, student.heun_steps
    last = traits(student.objective).sigma_min_only
    # A consistency model's solver goes one step, as a local matching's does.
    for k in range(1, largest + 1):
        starts = n - k
        pairs = [
            (i, j, 1 / starts / (1 if last else n - k - i))
            for i in range(starts)
            for j in ((n - 1,) if last else range(i + k, n))
        ]
        i, j, p = (np.array(column) for column in zip(*pairs, strict=True))
        yield 2 * k / (largest * (largest + 1)), k, i, j, p


def counts(student: Student, k: int, i: Integers, j: Integers) -> Counts:
    """Passes of samples with the draw (k, i, j) in a step of the generator."""
    known, end = traits(student.objective), student.grid_points - 1
    one, zero = np.ones(len(i)), np.zeros(len(i))
    unfinished = (j < end).astype(float)
    everywhere = student.matching == "global"
    steps = (j - i).astype(float) if everywhere else np.full(len(i), float(k))
    inner = zero if everywhere else (j > i + k).astype(float)
    judged = student.adversarial is not None
    found: Counts = {
        Use("teacher", "forward"): 2 * steps if known.teacher else zero,
        Use("student", "train"): one * (2 if student.dsm.enabled else 1),
        # The outer map: of the target without gradient, of the estimate with it.
        Use("target", "forward"): unfinished,
        Use("target", "twice" if judged else "through"): unfinished,
    }
    live = known.inner and student.inner == "model"
    _add(found, Use("student" if live else "target", "forward"), inner)
    if known.scratch:
        heun = student.own_solver == "heun"
        jumps = (steps > 0).astype(float)
        _add(found, Use("target", "forward"), 2 * steps if heun else jumps)
    if student.perceptual is not None:
        found |= {Use("perceptual", "through"): one, Use("perceptual", "forward"): one}
    if judged:
        found[Use("features", "through")] = one
    return found


def judging(student: Student, j: Integers) -> Counts:
    """Passes of samples in a step of the discriminator, which sees a real and a made image."""
    unfinished = (j < student.grid_points - 1).astype(float)
    return {
        Use("student", "forward"): np.ones(len(j)),
        Use("target", "forward"): unfinished,
        Use("features", "train"): np.full(len(j), 2.0),
    }


def expected(experiment: Experiment, model: str) -> Passes:
    """The passes of a training of an experiment.

    Raises
    ------
    UserError
        If the model is not trained here.
    """
    training = experiment.training(model)
    batch = training.batch_size
    if model == "teacher":
        images = Number(float(training.steps * batch))
        return Passes({Use("student", "train"): images}, training.steps)
    student = experiment.student(model)
    period = 1 if student.adversarial is None else student.adversarial.period
    generator = -(-training.steps // period)
    draws = list(law(student))
    uses = _total([(p, counts(student, k, i, j), q) for p, k, i, j, q in draws], generator, batch)
    if _weighs_beforehand(experiment, student):
        # Every micro-batch passes once more, for the weights of the losses.
        uses = {use: Number(2 * n.mean, 2 * n.deviation) for use, n in uses.items()}
    if others := training.steps - generator:
        judged = [(p, judging(student, j), q) for p, _, _, j, q in draws]
        for use, number in _total(judged, others, batch).items():
            # Steps of their own draws.
            before = uses.get(use, Number(0.0))
            spread = float(np.hypot(before.deviation, number.deviation))
            uses[use] = Number(before.mean + number.mean, spread)
    return Passes(uses, generator)


def _weighs_beforehand(experiment: Experiment, student: Student) -> bool:
    """Whether loss weights of a whole batch need a pass of their own."""
    share, micro = student.training.shared(experiment.resources.training.processes)
    several = share > micro
    adaptive = student.adversarial is not None or (student.dsm.enabled and student.dsm.adaptive)
    return student.lambda_scope == "global" and several and adaptive


def _total(
    draws: list[tuple[float, Counts, NDArray[np.float64]]], steps: int, batch: int
) -> dict[Use, Number]:
    found = {}
    for use in draws[0][1]:
        means = np.array([float(c[use] @ q) for _, c, q in draws])
        squares = np.array([float(c[use] ** 2 @ q) for _, c, q in draws])
        weights = np.array([p for p, _, _ in draws])
        mean = float(weights @ means)
        within = float(weights @ (squares - means**2))
        between = float(weights @ (means - mean) ** 2)
        variance = max(steps * (batch * within + batch**2 * between), 0.0)
        found[use] = Number(steps * batch * mean, variance**0.5)
    return found


def _add(found: Counts, use: Use, more: NDArray[np.float64]) -> None:
    found[use] = found[use] + more if use in found else more
