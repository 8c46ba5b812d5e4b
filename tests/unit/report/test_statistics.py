"""Means and intervals over training and sampling seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ctm_core.report.statistics import StandardError, Summary, half_width, paired, summarise

numbers = st.floats(-1e3, 1e3)


def test_three_sampling_seeds_give_students_interval() -> None:
    summary = summarise({(0, 0): 1.0, (0, 1): 2.0, (0, 2): 3.0})
    assert summary.mean == 2.0
    assert summary.std == 1.0
    assert summary.method == "sampling_seeds"
    # t with two degrees of freedom has the closed-form quantile (2p-1) sqrt(2/(4p(1-p))).
    t = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    assert summary.low == pytest.approx(2 - t / math.sqrt(3), rel=1e-12)
    assert summary.high == pytest.approx(2 + t / math.sqrt(3), rel=1e-12)


def test_three_training_seeds_take_precedence_and_are_not_pooled_with_sampling_seeds() -> None:
    values = {(t, s): 10.0 * t + s for t in range(3) for s in range(4)}
    summary = summarise(values)
    assert summary.method == "training_seeds"
    assert summary.by_train_seed == {0: 1.5, 1: 11.5, 2: 21.5}
    assert summary.mean == 11.5
    assert summary.std == 10.0


def test_two_training_seeds_are_averaged_within_each_sampling_seed() -> None:
    values = {(0, 0): 1.0, (1, 0): 3.0, (0, 1): 5.0, (1, 1): 3.0}
    summary = summarise(values)
    assert summary.method == "sampling_seeds"
    assert summary.std == pytest.approx(math.sqrt(2))  # of 2 and 4
    assert summary.by_train_seed == {0: 3.0, 1: 3.0}


def test_a_single_value_has_no_interval() -> None:
    for seed in (0, "0+1+2"):
        summary = summarise({(0, seed): 7.0})
        assert summary == Summary(7.0, by_train_seed={0: 7.0})
        assert summary.interval is None


def test_minimum_of_three_reads_the_first_three_sampling_seeds() -> None:
    values = {(0, 0): 5.0, (0, 1): 4.0, (0, 2): 6.0, (0, 3): 1.0}
    assert summarise(values).minimum_of_three == 4.0
    assert summarise({(0, 0): 5.0, (0, 1): 4.0}).minimum_of_three is None
    two = values | {(1, s): v + 10 for (_, s), v in values.items()}
    assert summarise(two).minimum_of_three == 9.0


def test_missing_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="training seed 1 has no value of sampling seed 2"):
        summarise({(0, 1): 1.0, (0, 2): 1.0, (1, 1): 1.0})
    with pytest.raises(ValueError, match="no values"):
        summarise({})


@given(st.lists(numbers, min_size=2, max_size=9))
def test_half_width_agrees_with_scipy(values: list[float]) -> None:
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=0.0, scale=max(stats.sem(values), 1e-300)
    )
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-6, abs=1e-9)


@given(st.dictionaries(st.integers(0, 5), numbers, min_size=3), numbers)
def test_shift_moves_the_interval_and_keeps_its_width(
    values: dict[int, float], shift: float
) -> None:
    one = summarise({(0, seed): value for seed, value in values.items()})
    two = summarise({(0, seed): value + shift for seed, value in values.items()})
    assert two.mean == pytest.approx(one.mean + shift, abs=1e-9)
    assert one.low is not None and one.high is not None and one.low <= one.mean <= one.high
    assert two.high - two.low == pytest.approx(one.high - one.low, abs=1e-8)  # type: ignore[operator]


# -- one sampling seed ---------------------------------------------------------------------------


def test_one_sampling_seed_takes_the_values_own_error() -> None:
    error = StandardError(0.2, 7)
    summary = summarise({(0, 0): 5.0}, {(0, 0): error})
    assert (summary.method, summary.std) == ("subsampling", None)
    half = float(stats.t.ppf(0.975, 7)) * 0.2
    assert summary.low == pytest.approx(5 - half) and summary.high == pytest.approx(5 + half)
    # Two trainings share their noises: the mean of the errors, not less.
    two = summarise({(0, 0): 5.0, (1, 0): 7.0}, {(0, 0): error, (1, 0): StandardError(0.4, 3)})
    assert two.mean == 6.0 and two.method == "subsampling"
    assert two.half == pytest.approx(float(stats.t.ppf(0.975, 3)) * 0.3)
    assert two.by_train_seed == {0: 5.0, 1: 7.0}


def test_seeds_take_precedence_over_the_values_own_errors() -> None:
    seeds = {(0, s): float(s) for s in range(3)}
    errors = {key: StandardError(9.0, 7) for key in seeds}
    assert summarise(seeds, errors) == summarise(seeds)
    trainings = {(t, 0): float(t) for t in range(3)}
    found = summarise(trainings, {key: StandardError(9.0, 7) for key in trainings})
    assert found.method == "training_seeds" and found.std == 1.0
    assert summarise({(0, 0): 1.0, (1, 0): 2.0}, {(0, 0): StandardError(1.0, 3)}).interval is None


# -- differences ---------------------------------------------------------------------------------


def cell(**values: float) -> Summary:
    """``cell(t0s1=2.0)``: training seed 0, sampling seed 1."""
    return summarise({(int(k[1]), int(k[3])): value for k, value in values.items()})


def test_a_shared_sampling_seed_cancels() -> None:
    first = cell(t0s0=1.0, t0s1=11.0, t0s2=21.0)
    second = cell(t0s0=2.0, t0s1=12.5, t0s2=22.5)
    found = paired(first, second)
    assert found.mean == pytest.approx(-4 / 3)
    assert (found.method, found.pairs, found.why) == ("sampling_seeds", 3, "")
    half = half_width([-1.0, -1.5, -1.5])
    assert found.low == pytest.approx(-4 / 3 - half) and found.high == pytest.approx(half - 4 / 3)
    assert str(found) == "-1.33 [-2.05, -0.62] ‡"
    assert paired(first, second, 0.5).mean == pytest.approx(11 - 0.5 * 37 / 3)


def test_three_shared_training_seeds_are_the_axis() -> None:
    first = summarise({(t, s): 10.0 * t + s for t in range(3) for s in range(2)})
    second = summarise({(t, s): 9.0 * t - 7 * s for t in range(3) for s in range(2)})
    found = paired(first, second)
    assert (found.method, found.pairs) == ("training_seeds", 3)
    assert found.high - found.mean == pytest.approx(half_width([4.0, 5.0, 6.0]))  # type: ignore[operator]


def test_a_teacher_of_one_seed_is_paired_with_every_student() -> None:
    students = summarise({(t, s): 10.0 * t + s for t in range(3) for s in range(2)})
    teacher = cell(t5s0=1.0, t5s1=2.0)
    found = paired(students, teacher)
    assert (found.method, found.mean, found.pairs) == ("training_seeds", 9.0, 3)
    assert paired(teacher, students).mean == -9.0
    few = paired(cell(t0s0=1.0, t0s1=3.0, t1s0=3.0, t1s1=5.0), teacher)
    assert (few.method, few.pairs, few.mean) == ("sampling_seeds", 2, 1.5)
    assert few.low == few.mean - half_width([1.0, 2.0])


def test_only_seeds_in_common_are_paired() -> None:
    first = cell(t0s0=1.0, t0s1=2.0, t0s2=99.0)
    found = paired(first, cell(t0s0=0.0, t0s1=1.0, t0s3=-99.0))
    assert (found.mean, found.low, found.high, found.pairs) == (1.0, 1.0, 1.0, 2)
    other = paired(first, cell(t0s7=0.0, t0s8=1.0))
    assert other.low is None and "no sampling seed in common" in other.why
    one = summarise({(t, 0): 1.0 for t in (0, 1)})
    two = summarise({(t, 0): 1.0 for t in (2, 3)})
    assert "no training seed in common" in paired(one, two).why
    assert "not known" in paired(Summary(1.0), Summary(2.0)).why
    assert "single pair" in paired(cell(t0s0=1.0), cell(t0s0=2.0)).why


def test_outcome_follows_the_paired_difference_and_not_the_intervals() -> None:
    first, second = cell(t0s0=1.0, t0s1=11.0), cell(t0s0=2.0, t0s1=12.1)
    assert first.interval is not None and first.interval[1] > second.mean
    assert paired(first, second).outcome == "lower"
    assert paired(second, first).outcome == "higher"
    assert paired(first, second, 0.5).outcome == paired(first, first).outcome == "undecided"
    assert paired(first, Summary(99.0)).outcome == "undecided"


def test_errors_of_single_values_are_added() -> None:
    first = summarise({(0, 0): 5.0}, {(0, 0): StandardError(0.3, 15)})
    second = summarise({(0, 0): 4.0}, {(0, 0): StandardError(0.4, 3)})
    found = paired(first, second, 0.5)
    assert (found.mean, found.method) == (3.0, "subsampling")
    assert found.high == pytest.approx(3 + float(stats.t.ppf(0.975, 3)) * 0.5)


# -- coverage ------------------------------------------------------------------------------------
# 95% of the intervals should hold the true value. Of 2,000 the share scatters by 0.5% around it.

TRIALS = 2000


def share(intervals: list[tuple[float | None, float | None]], truth: float) -> float:
    held = [
        low <= truth <= high for low, high in intervals if low is not None and high is not None
    ]
    assert len(held) == TRIALS
    return sum(held) / TRIALS


def drawn(
    generator: np.random.Generator, trainings: int, samplings: int, between: float
) -> np.ndarray:
    """Values of (training, sampling seed): spread ``between`` trainings, and shared noises."""
    training = between * generator.standard_normal((trainings, 1))
    return training + generator.standard_normal((1, samplings))


def summary_of(values: np.ndarray) -> Summary:
    return summarise({(t, s): float(v) for (t, s), v in np.ndenumerate(values)})


def test_intervals_over_trainings_hold_the_methods_mean_and_pooling_would_not() -> None:
    generator = np.random.default_rng(1)
    made = []
    pooled = []
    for _ in range(TRIALS):
        # Sampling seeds are averaged out first; their common part is small beside the trainings'.
        values = drawn(generator, 4, 3, 5.0)
        summary = summary_of(values)
        made.append((summary.low, summary.high))
        half = half_width(values.ravel().tolist())
        pooled.append((summary.mean - half, summary.mean + half))
    assert 0.93 < share(made, 0.0) < 0.97
    assert share(pooled, 0.0) < 0.85


def test_intervals_over_sampling_seeds_hold_the_value_of_these_weights() -> None:
    generator = np.random.default_rng(2)
    made = [summary_of(drawn(generator, 1, 3, 0.0)) for _ in range(TRIALS)]
    assert 0.935 < share([(s.low, s.high) for s in made], 0.0) < 0.965


def test_paired_intervals_hold_the_difference_and_are_narrow() -> None:
    generator = np.random.default_rng(3)
    made, narrower = [], 0
    for _ in range(TRIALS):
        noise = generator.standard_normal((1, 3))
        one = summary_of(noise + 1.0 + 0.1 * generator.standard_normal((1, 3)))
        two = summary_of(noise + 0.1 * generator.standard_normal((1, 3)))
        found = paired(one, two)
        made.append((found.low, found.high))
        assert found.low is not None and found.high is not None and one.half and two.half
        narrower += found.high - found.low < one.half + two.half
    assert 0.935 < share(made, 1.0) < 0.965
    assert narrower > 0.9 * TRIALS


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 1.0])
def test_added_errors_hold_the_difference_whatever_is_shared(correlation: float) -> None:
    generator = np.random.default_rng(4)
    made = []
    for _ in range(TRIALS):
        one = generator.standard_normal()
        two = correlation * one + math.sqrt(1 - correlation**2) * generator.standard_normal()
        errors = np.sqrt(generator.chisquare(15, 2) / 15)
        first, second = (
            summarise({(0, 0): float(v)}, {(0, 0): StandardError(float(e), 15)})
            for v, e in zip((one, two), errors, strict=True)
        )
        found = paired(first, second)
        made.append((found.low, found.high))
    assert share(made, 0.0) > 0.935
    if correlation == -1.0:
        assert share(made, 0.0) < 0.975  # nothing is given away where the bound is reached
