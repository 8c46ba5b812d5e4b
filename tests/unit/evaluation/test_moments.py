"""Streaming moments against NumPy, and their merging."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm_core.evaluation.metrics.moments import Moments


def features(n, dim, seed=0, offset=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(offset, 1.0, (n, dim)))


def close(a, b, tolerance=1e-12):
    assert a.n == b.n
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    scale = float(b.scatter.abs().max())
    torch.testing.assert_close(a.scatter, b.scatter, rtol=0, atol=tolerance * max(scale, 1e-300))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_against_numpy(offset):
    x = features(200, 7, offset=offset)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-14)
    expected = np.cov(x.numpy(), rowvar=False)
    np.testing.assert_allclose(moments.covariance(), expected, atol=1e-12 * np.abs(expected).max())


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(0, 1000),
    st.sampled_from([0.0, 3.0, 1e3]),
)
def test_any_split_gives_the_same_moments(sizes, dim, seed, offset):
    x = features(sum(sizes), dim, seed, offset)
    state = Moments.of(torch.zeros(0, dim))
    for part in x.split(sizes):
        state = state.merge(Moments.of(part))
    close(state, Moments.of(x), 1e-10)


@settings(max_examples=40)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 1000))
def test_merging_is_associative_and_commutative(a, b, c, seed):
    x, y, z = (Moments.of(features(n, 3, seed + i)) for i, n in enumerate((a, b, c)))
    close(x.merge(y).merge(z), x.merge(y.merge(z)))
    close(x.merge(y), y.merge(x))


def test_float32_features_are_summed_in_float64():
    x = features(4000, 4, offset=1000.0).float()
    expected = np.cov(x.double().numpy(), rowvar=False)
    state = Moments.of(torch.zeros(0, 4))
    for part in x.split(37):
        state = state.merge(Moments.of(part))
    assert state.scatter.dtype == torch.float64
    np.testing.assert_allclose(state.covariance(), expected, atol=1e-10)


def test_misuse_is_refused():
    moments = Moments.of(features(5, 3))
    with pytest.raises(ValueError, match="do not merge"):
        moments.merge(Moments.of(features(5, 4)))
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="two rows"):
        Moments.of(features(1, 3)).covariance()
    with pytest.raises(ValueError, match="shape"):
        Moments.of(features(5, 3)[0])
