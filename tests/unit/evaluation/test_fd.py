"""The Fréchet distance at parts of the samples and at infinitely many."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics.fd import at_parts, intercept, is_long_enough
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.state import State


def blocks(rows, count):
    state = State(len(rows), (), blocks=count)
    state.update({"features": rows})
    return state.moments()


def test_a_line_over_1_by_n_is_continued_exactly():
    assert intercept({400: 3 + 8 / 400, 200: 3 + 8 / 200, 100: 3 + 8 / 100}) == pytest.approx(3)
    values = {1000: 2.1, 500: 2.3, 250: 2.55}
    x = 1 / np.array(list(values))
    assert intercept(values) == pytest.approx(np.polyfit(x, list(values.values()), 1)[1])


def test_values_at_parts_are_means_over_parts():
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(96, 3)))
    reference = Moments.of(rows[:50] * 1.2)
    values = at_parts(blocks(rows, 8), reference)
    assert list(values) == [96, 48, 24]
    for n, value in values.items():
        each = [frechet_distance(reference, Moments.of(part)).value for part in rows.split(n)]
        assert value == pytest.approx(np.mean(each), rel=1e-9)


def test_the_bias_of_few_samples_goes():
    # N(0, I) in 16 dimensions against the same with another mean: the distance is 16 · 0.04.
    generator = np.random.default_rng(0)
    n, dim = 512, 16
    reference = Moments(10**7, torch.zeros(dim).double(), torch.eye(dim).double() * (10**7 - 1))
    plain, extrapolated = [], []
    for _ in range(40):
        rows = torch.from_numpy(generator.normal(size=(n, dim)) + 0.2)
        values = at_parts(blocks(rows, 4), reference)
        plain.append(values[n] - 0.64)
        extrapolated.append(intercept(values) - 0.64)
    bias, left = np.mean(plain), np.mean(extrapolated)
    error = np.std(extrapolated, ddof=1) / 40**0.5
    assert bias > 0.08  # about (D + D(D + 1)/4) / n
    assert abs(left) < 0.1 * bias + 2 * error


def test_how_many_samples_it_needs():
    assert is_long_enough(1024, 64) and not is_long_enough(1023, 64)
