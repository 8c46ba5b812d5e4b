"""Spreads of few runs: their parts, their moderation, and how often a run is wrongly suspected."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ctm_core.report.agreement import spread
from ctm_core.report.agreement.spread import FLOOR, Variance

MODELS, CELLS = 5, 6
MACHINES, TRAININGS = 0.02, 0.08


def test_trainings_and_machines_are_told_apart() -> None:
    known = spread.parts({"a": {0: 1.0, 1: 5.0}, "b": {0: 3.0, 1: 5.0}, "c": {0: 2.0}})
    assert known.mean == pytest.approx(3.5), "each training counts once, on however many machines"
    assert known.trainings == Variance(4.5, 1)
    assert known.machines == Variance(2.0 / 3, 3)
    assert (known.seeds, known.per_seed) == (2, pytest.approx(2 / (1 / 3 + 1 / 2)))
    alone = spread.parts({"a": {0: 1.0}})
    assert alone.trainings == alone.machines == Variance()


def test_the_variance_of_few_values_leans_on_all() -> None:
    variances = [Variance(v, 2) for v in (0.5, 1.0, 2.0, 1.0, 1.0)] + [Variance()]
    made = spread.moderated(variances)
    assert made[0].value > 0.5 and made[2].value < 2.0
    assert made[0].freedom == pytest.approx(2 + spread.MOST_PRIOR)
    assert made[-1].value > 0 and made[-1].freedom == pytest.approx(spread.MOST_PRIOR)
    wild = spread.moderated([Variance(10.0**v, 20) for v in (-6, -3, 0, 3, 6)])
    assert wild[0].value < 1e-5 and wild[0].freedom < 21, "they have nothing in common"
    few = spread.moderated([Variance(4.0, 2), Variance()])
    assert few == [Variance(4.0 + FLOOR**2, 2), Variance(FLOOR**2, 0)]


def test_equal_seeds_are_compared_one_by_one() -> None:
    reference = {"a": {0: 1.0, 1: 9.0}, "b": {0: 1.2, 1: 9.2}}
    known = spread.parts(reference)
    alike = spread.score({0: 1.3}, reference, known)
    assert alike is not None and alike.paired
    assert alike.difference == pytest.approx(0.2)
    assert alike.error == pytest.approx(math.sqrt(0.02 * 1.5))
    other = spread.score({5: 1.3}, reference, known)
    assert other is not None and not other.paired
    assert other.difference == pytest.approx(1.3 - 5.1)
    assert other.error == pytest.approx(math.sqrt(32 * 1.5 + 0.02 * 1.5))
    assert spread.score({5: 1.3}, {"a": {0: 1.0}}, spread.parts({"a": {0: 1.0}})) is None


def test_holm_rejects_step_by_step() -> None:
    assert spread.holm([0.02, 0.004, 0.5, 0.001], 0.01) == [False, False, False, True]
    assert spread.holm([0.0051, 0.004, 0.003], 0.01) == [True, True, True]
    assert spread.holm([], 0.01) == []


Reference = dict[str, tuple[int, ...]]
ONE_SEED: Reference = {"a": (0, 1, 2), "b": (0,), "c": (0,)}


def suspected(
    random: np.random.Generator,
    layout: Reference,
    seeds: tuple[int, ...],
    alike: float,
    shift: float = 0.0,
) -> bool:
    """Whether any of 30 cells is said to differ; those of a model move together."""
    cells = MODELS * CELLS
    sizes = [s * np.exp(0.5 * random.standard_normal(cells)) for s in (TRAININGS, MACHINES)]

    def draw(size: np.ndarray) -> np.ndarray:
        common = np.repeat(random.standard_normal(MODELS), CELLS)
        own = random.standard_normal(cells)
        return np.asarray(size * (alike**0.5 * common + (1 - alike) ** 0.5 * own))

    trainings = {seed: draw(sizes[0]) for seed in {*seeds, 0, 1, 2}}
    made = {m: {s: trainings[s] + draw(sizes[1]) for s in known} for m, known in layout.items()}
    run = {seed: trainings[seed] + draw(sizes[1]) for seed in seeds}
    run = {seed: values + np.eye(cells)[0] * shift for seed, values in run.items()}
    of = [
        {m: {s: float(v[i]) for s, v in d.items()} for m, d in made.items()} for i in range(cells)
    ]
    known = [spread.parts(one) for one in of]
    both = zip(
        spread.moderated([one.trainings for one in known]),
        spread.moderated([one.machines for one in known]),
        strict=True,
    )
    known = [
        replace(one, trainings=t, machines=m) for one, (t, m) in zip(known, both, strict=True)
    ]
    scores = [
        spread.score({s: float(v[i]) for s, v in run.items()}, of[i], known[i])
        for i in range(cells)
    ]
    return any(spread.holm([score.p for score in scores if score is not None]))


@pytest.mark.parametrize(
    ("layout", "seeds"), [(ONE_SEED, (0,)), (ONE_SEED, (5,)), ({"a": (0, 1, 2)}, (0, 1, 2))]
)
def test_a_run_that_is_the_reference_s_is_seldom_suspected(
    layout: Reference, seeds: tuple[int, ...]
) -> None:
    """At most the stated probability; 150 runs of which five are suspected have p < 0.02."""
    random = np.random.default_rng(0)
    runs = 150
    assert sum(suspected(random, layout, seeds, 0.8) for _ in range(runs)) < 5


def test_a_cell_that_is_off_is_found() -> None:
    random = np.random.default_rng(1)
    found = [suspected(random, ONE_SEED, (0,), 0.8, shift=0.6) for _ in range(20)]
    assert sum(found) >= 18
    small = [suspected(random, ONE_SEED, (0,), 0.8, shift=0.01) for _ in range(20)]
    assert sum(small) <= 2
