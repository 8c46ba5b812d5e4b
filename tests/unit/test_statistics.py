"""Means and intervals over training and sampling seeds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ctm_core.statistics import Summary, below, half_width, summarise

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


def test_below_needs_intervals_that_do_not_meet() -> None:
    low, high = Summary(1.0, low=0.9, high=1.1), Summary(2.0, low=1.8, high=2.2)
    assert below(low, high) == "yes"
    assert below(high, low) == "no"
    assert below(low, high, 0.5) == "undecided"
    assert below(high, high) == "undecided"
    assert below(low, Summary(2.0)) == "undecided"
    assert below(Summary(1.0, low=1.0, high=1.8), high) == "undecided"  # touching is not below
