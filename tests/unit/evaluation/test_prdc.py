"""Distances in pieces; precision, recall, density, coverage against scikit-learn's neighbours."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from ctm_core.evaluation.metrics import prdc
from ctm_core.evaluation.metrics.prdc import (
    density_coverage,
    distance_pieces,
    precision_recall,
    radii,
)


def draw(n, m, dim=6, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, dim)) * 0.8 + 0.3 + 100.0
    y = generator.normal(size=(m, dim)) + 100.0
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def reaches(rows, k):
    """Distance to the k-th nearest other row, by scikit-learn."""
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows)
    return search.kneighbors()[0][:, -1]


def distances(x, y):
    return np.linalg.norm(x[:, None] - y[None], axis=-1)


@pytest.mark.parametrize("piece", [50, 1000, 2**23])
def test_pieces_cover_all_pairs(monkeypatch, piece):
    monkeypatch.setattr(prdc, "PIECE", piece)
    x, y = draw(33, 20)
    found = torch.full((33, 20), torch.nan, dtype=torch.float64)
    for place, squared in distance_pieces(x, y):
        found[place] = squared
    expected = distances(x.double().numpy(), y.double().numpy()) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(radii(x, 3), reaches(x.double().numpy(), 3) ** 2, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_shares_by_scikit_learn(monkeypatch, k):
    monkeypatch.setattr(prdc, "PIECE", 997)
    x, y = draw(150, 110)
    a, b = x.double().numpy(), y.double().numpy()
    apart, real, own = distances(a, b), reaches(b, k), reaches(a, k)
    precise = (apart <= real).any(axis=1)
    found = precision_recall(x, y, k)
    assert found["precision"].value == pytest.approx(precise.mean(), rel=1e-12)
    assert found["precision"].standard_error == pytest.approx(
        precise.std(ddof=1) / 150**0.5, rel=1e-12
    )
    assert found["recall"].value == pytest.approx(
        (apart <= own[:, None]).any(axis=0).mean(), rel=1e-12
    )
    assert 0 < found["recall"].value < 1 and 0 < found["precision"].value < 1
    dense = density_coverage(x, y, k)
    balls = (apart <= real).sum(axis=1) / k
    assert dense["density"].value == pytest.approx(balls.mean(), rel=1e-12)
    assert dense["density"].standard_error == pytest.approx(
        balls.std(ddof=1) / 150**0.5, rel=1e-12
    )
    assert dense["coverage"].value == pytest.approx((apart <= real).any(axis=0).mean(), rel=1e-12)
    known = radii(y, k)
    assert precision_recall(x, y, k, known) == found
    assert density_coverage(x, y, k, known) == dense


def test_precision_and_recall_change_places():
    x, y = draw(80, 90)
    one, other = precision_recall(x, y, 3), precision_recall(y, x, 3)
    assert one["precision"].value == other["recall"].value
    assert one["recall"].value == other["precision"].value


def test_copies_lie_on_the_manifold_even_where_balls_have_no_radius():
    # Every image thrice: the second nearest other one is a copy, so all radii are 0.
    rows = (torch.randn(20, 400, generator=torch.Generator().manual_seed(0)) + 50).repeat(3, 1)
    assert radii(rows, 2).tolist() == [0.0] * 60
    shares = precision_recall(rows, rows, k=2)
    assert (shares["precision"].value, shares["recall"].value) == (1.0, 1.0)
    dense = density_coverage(rows[:20], rows, k=2)
    assert (dense["density"].value, dense["coverage"].value) == (1.5, 1.0)


def test_the_expected_density_of_one_distribution_is_near_1_and_coverage_as_published():
    # Naeem et al., proposition: for equal sets coverage is near 1 - (1/2)^k when n = m.
    generator = np.random.default_rng(5)
    x, y = (torch.from_numpy(generator.normal(size=(1000, 3))) for _ in range(2))
    found = density_coverage(x, y, k=5)
    assert found["density"].value == pytest.approx(1.0, abs=0.05)
    assert found["coverage"].value == pytest.approx(1 - 0.5**5, abs=0.02)


def test_what_has_no_neighbours_is_refused():
    x, y = draw(10, 10)
    with pytest.raises(ValueError, match="3-th nearest"):
        radii(x[:3], 3)
    with pytest.raises(ValueError, match="no distances"):
        precision_recall(x, y[:, :2], 3)
    with pytest.raises(ValueError, match="empty"):
        density_coverage(x[:0], y, 5)
