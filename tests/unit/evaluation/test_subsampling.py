"""Standard errors against closed forms and against the spread over many sets of samples."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics.blocks import left_out, whole
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, delete_d, of_independent


def test_of_a_mean_it_is_the_error_of_the_mean():
    terms = np.random.default_rng(0).normal(size=60)
    parts = terms.reshape(12, 5)
    left_out = [np.delete(parts, b, axis=0).mean() for b in range(12)]
    found = delete_d(terms.mean(), left_out)
    blocks = parts.mean(axis=1)
    assert found.standard_error == pytest.approx(blocks.std(ddof=1) / 12**0.5, rel=1e-12)
    assert found.freedom == 11
    single = of_independent(torch.from_numpy(terms))
    assert single.value == pytest.approx(terms.mean(), rel=1e-12)
    assert single.standard_error == pytest.approx(terms.std(ddof=1) / 60**0.5, rel=1e-12)
    assert single.freedom == 59


def test_too_little():
    assert of_independent(torch.tensor([2.0])) == Estimate(2.0)
    with pytest.raises(ValueError, match="nothing to average"):
        of_independent(torch.tensor([]))
    with pytest.raises(ValueError, match="two blocks"):
        delete_d(1.0, [1.0])


def test_of_a_frechet_distance_it_is_the_spread_over_seeds():
    # Away from zero the distance is smooth in the moments; 400 sets give the true variance to 7%.
    generator = np.random.default_rng(0)
    dim, n, repeats = 4, 256, 400
    reference = Moments(10**6, torch.zeros(dim).double(), torch.eye(dim).double() * (10**6 - 1))
    values, variances = [], []
    for _ in range(repeats):
        rows = torch.from_numpy(generator.normal(size=(n, dim)) * [1.0, 0.5, 2.0, 1.0] + 0.5)
        state = State(n, (), blocks=16)
        state.update({"features": rows})
        value = frechet_distance(reference, whole(state.moments())).value
        left = [frechet_distance(reference, part).value for part in left_out(state.moments())]
        found = delete_d(value, left)
        values.append(value)
        variances.append(found.standard_error**2)
        assert found.freedom == 15
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.2)
