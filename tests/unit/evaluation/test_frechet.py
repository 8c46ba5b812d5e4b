"""The Fréchet distance against SciPy, closed forms, and centred features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm_core.evaluation.metrics import frechet
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments


def moments(mean, covariance, n=10**6):
    mean, covariance = torch.as_tensor(mean), torch.as_tensor(covariance)
    return Moments(n, mean.double(), covariance.double() * (n - 1))


def covariance(dim, seed, decades):
    """A random covariance whose eigenvalues fall over some decades."""
    generator = np.random.default_rng(seed)
    q, _ = np.linalg.qr(generator.normal(size=(dim, dim)))
    return (q * np.logspace(0, -decades, dim)) @ q.T


def by_scipy(a, b):
    root = scipy.linalg.sqrtm(a.covariance().numpy() @ b.covariance().numpy())
    shift = float((a.mean - b.mean).square().sum())
    return shift + float(a.covariance().trace() + b.covariance().trace()) - 2 * root.real.trace()


def traces(a, b):
    return float(a.covariance().trace() + b.covariance().trace())


@settings(max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(0, 1000),
    st.floats(0, 5),
    st.floats(0, 5),
    st.floats(1e-3, 1e3),
)
def test_scipy_at_full_rank(dim, seed, decades_a, decades_b, scale):
    generator = np.random.default_rng(seed)
    a = moments(generator.normal(size=dim), covariance(dim, seed, decades_a))
    b = moments(generator.normal(size=dim), scale * covariance(dim, seed + 1, decades_b))
    distance = frechet_distance(a, b)
    assert not distance.rank_deficient
    assert abs(distance.value - by_scipy(a, b)) <= 1e-8 * traces(a, b)


def test_scipy_on_features_of_real_size():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(96, 96)) * np.logspace(0, -2, 96)
    x = generator.normal(size=(900, 96)) @ mixing
    y = np.maximum(generator.normal(size=(700, 96)) @ mixing, 0.0)
    a, b = Moments.of(torch.from_numpy(x)), Moments.of(torch.from_numpy(y))
    distance = frechet_distance(a, b)
    assert not distance.rank_deficient
    assert abs(distance.value - by_scipy(a, b)) <= 1e-8 * traces(a, b)


def trace_sqrt_product(a, b):
    """tr (a b)^(1/2) of covariances (D, D)."""
    factors = (frechet._factor(matrix, len(matrix)) for matrix in (a, b))
    return frechet._nuclear_norm(*factors, b)


@pytest.mark.parametrize("decades", [0, 4, 8, 12])
def test_commuting_covariances_have_a_closed_form(decades):
    # tr (A B)^(1/2) = Σ √(αᵢ βᵢ) for common eigenvectors, also where sqrtm loses its digits.
    dim = 50
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))
    alpha, beta = np.logspace(0, -decades, dim), np.linspace(1.0, 3.0, dim)
    root = trace_sqrt_product(
        torch.from_numpy((q * alpha) @ q.T), torch.from_numpy((q * beta) @ q.T)
    )
    assert abs(root - np.sqrt(alpha * beta).sum()) <= 1e-8 * (alpha.sum() + beta.sum())


@pytest.mark.parametrize(("decades", "exact"), [(2, False), (6, True)])
def test_singular_values_are_computed_where_their_squares_lose_digits(monkeypatch, decades, exact):
    called = []
    svdvals = frechet.linalg.svdvals
    monkeypatch.setattr(
        frechet.linalg, "svdvals", lambda matrix: called.append(1) or svdvals(matrix)
    )
    dim = 60
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))
    alpha, beta = np.logspace(0, -decades, dim), np.logspace(0, -decades - 1, dim)
    matrices = (torch.from_numpy((q * values) @ q.T) for values in (alpha, beta))
    assert abs(trace_sqrt_product(*matrices) - np.sqrt(alpha * beta).sum()) <= 1e-9 * alpha.sum()
    assert bool(called) == exact


def test_no_convergence_leads_to_the_singular_values(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    a, b = (
        Moments.of(torch.from_numpy(rows))
        for rows in np.random.default_rng(0).normal(size=(2, 40, 5))
    )
    expected = frechet_distance(a, b).value
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30)
@given(st.integers(2, 25), st.integers(2, 60), st.integers(1, 30), st.integers(0, 1000))
def test_rank_deficient_against_centred_features(n_a, n_b, dim, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n_a, dim)) * np.logspace(0, -3, dim)
    y = generator.normal(size=(n_b, dim)) * np.logspace(0, -3, dim) + 0.3
    a, b = Moments.of(torch.from_numpy(x)), Moments.of(torch.from_numpy(y))
    product = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt((n_a - 1) * (n_b - 1))
    root = np.linalg.svd(product, compute_uv=False).sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    distance = frechet_distance(a, b)
    assert distance.rank_deficient == (min(n_a, n_b) <= dim)
    assert abs(distance.value - (shift + traces(a, b) - 2 * root)) <= 1e-8 * traces(a, b)


def test_singular_with_many_rows_against_centred_features():
    # Duplicate, constant and dependent dimensions: singular although n is far above D.
    generator = np.random.default_rng(3)

    def draw(n, shift):
        z = generator.normal(size=(n, 6)) + shift
        return np.concatenate([z, z[:, :2], np.ones((n, 1)), z @ np.full((6, 1), 0.3)], axis=1)

    x, y = draw(500, 0.0), draw(400, 0.2)
    a, b = Moments.of(torch.from_numpy(x)), Moments.of(torch.from_numpy(y))
    product = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(499 * 399)
    root = np.linalg.svd(product, compute_uv=False).sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    distance = frechet_distance(a, b)
    assert distance.rank_deficient
    assert abs(distance.value - (shift + traces(a, b) - 2 * root)) <= 1e-8 * traces(a, b)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(2, 30), st.integers(0, 1000))
def test_symmetric_never_negative_and_zero_for_itself(dim, n, seed):
    generator = np.random.default_rng(seed)
    a = Moments.of(torch.from_numpy(generator.normal(size=(n, dim))))
    b = Moments.of(torch.from_numpy(generator.normal(size=(n + 3, dim))))
    one, other = frechet_distance(a, b).value, frechet_distance(b, a).value
    assert one >= 0 and abs(one - other) <= 1e-12 * traces(a, b)
    assert 0 <= frechet_distance(a, a).value <= 1e-12 * traces(a, a)


def test_a_shift_adds_its_square():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)))
    a, b = Moments.of(x), Moments.of(x + torch.tensor([3.0, 0.0, 4.0, 0.0]))
    assert frechet_distance(a, b).value == pytest.approx(25.0, abs=1e-10)


def test_one_dimension():
    a, b = moments([1.0], [[4.0]]), moments([3.0], [[9.0]])
    assert frechet_distance(a, b).value == pytest.approx((3 - 1) ** 2 + (3 - 2) ** 2, abs=1e-12)


def test_constant_features():
    black = Moments.of(torch.zeros(10, 3))
    other = moments([1.0, 0.0, 0.0], np.eye(3))
    distance = frechet_distance(black, other)
    assert distance.rank_deficient and distance.value == pytest.approx(1.0 + 3.0)
    assert frechet_distance(black, black) == (0.0, True)


def test_an_indefinite_matrix_is_clamped():
    nearly = np.diag([1.0, 0.5, -1e-17])
    distance = frechet_distance(moments(np.zeros(3), nearly), moments(np.zeros(3), np.eye(3)))
    expected = 1.5 + 3.0 - 2 * (1.0 + np.sqrt(0.5))
    assert distance.rank_deficient and distance.value == pytest.approx(expected, abs=1e-10)


def test_different_dimensions_are_refused():
    with pytest.raises(ValueError, match="no distance"):
        frechet_distance(moments([0.0], [[1.0]]), moments([0.0, 0.0], np.eye(2)))


@pytest.mark.parametrize("seed", [3, 9, 10])
def test_few_distinct_images_and_mostly_constant_features(seed: int) -> None:
    """What a student that has learned little gives Lite0; some eigensolvers do not converge."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.zeros(64, 1280, dtype=torch.float64)
    varying = torch.randperm(1280, generator=generator)[:106]
    rows = torch.randn(64, 106, generator=generator, dtype=torch.float64)
    rows *= torch.logspace(0, -12, 106, dtype=torch.float64)
    rows[8:] = rows[0]
    features[:, varying] = rows
    one, other = Moments.of(features), Moments.of(2 * features)
    # Σ and 4 Σ: tr Σ + 4 tr Σ - 2 · 2 tr Σ = tr Σ, beside the shift of the mean.
    expected = float(one.covariance().trace()) + float(one.mean.square().sum())
    found = frechet_distance(one, other)
    assert found.rank_deficient
    assert found.value == pytest.approx(expected, rel=1e-9)
