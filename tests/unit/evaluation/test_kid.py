"""KID against clean-fid on the same features, loops over pairs, and the spread over seeds."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics.kid import (
    PIECE,
    kid,
    kid_of_subsets,
    self_similarity,
    subset_draws,
)
from ctm_core.models import torchvision_shim


def draw(n, m, dim=16, seed=0, shift=0.2):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, dim)) + shift
    y = np.maximum(generator.normal(size=(m, dim)), -0.5)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


@pytest.fixture(scope="module")
def fid():
    torchvision_shim.apply()
    import cleanfid.fid

    return cleanfid.fid


def by_formula(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    n, m, dim = len(x), len(y), x.shape[1]

    def mean_of_pairs(a):
        values = [
            (a[i] @ a[j] / dim + 1) ** 3 for i in range(len(a)) for j in range(len(a)) if i != j
        ]
        return np.mean(values)

    across = np.mean([(x[i] @ y[j] / dim + 1) ** 3 for i in range(n) for j in range(m)])
    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * across


@pytest.mark.parametrize("piece", [7, 16, PIECE])
def test_all_pairs_in_pieces(monkeypatch, piece):
    monkeypatch.setattr("ctm_core.evaluation.metrics.kid.PIECE", piece)
    x, y = draw(40, 29)
    assert kid(x, y).value == pytest.approx(by_formula(x, y), rel=1e-12)
    assert kid(x, y, self_similarity(y)).value == kid(x, y).value


def test_clean_fid_on_the_same_features_and_subsets(monkeypatch, fid):
    x, y = draw(120, 150)
    draws = list(subset_draws(3, 120, 150, subsets=20, size=50))
    # clean-fid draws from its second argument first.
    order = iter([rows.numpy() for ours, theirs in draws for rows in (ours, theirs)])
    monkeypatch.setattr(fid.np.random, "choice", lambda n, size, replace: next(order))
    theirs = fid.kernel_distance(
        y.double().numpy(), x.double().numpy(), num_subsets=20, max_subset_size=50
    )
    found = kid_of_subsets(x, y, draws)
    assert found.value == pytest.approx(theirs, rel=1e-9)
    assert found.standard_error is None


def test_clean_fid_with_one_subset_of_everything_is_all_pairs(fid):
    x, y = draw(80, 80)
    theirs = fid.kernel_distance(y.double().numpy(), x.double().numpy(), 1, 80)
    assert kid(x, y).value == pytest.approx(theirs, rel=1e-9)


def test_subsets_repeat_no_row_and_depend_on_the_seed():
    one = list(subset_draws(0, 30, 20, 3, 10))
    assert len(one) == 3
    for ours, theirs in one:
        assert len(set(ours.tolist())) == len(set(theirs.tolist())) == 10
        assert ours.max() < 30 and theirs.max() < 20
    assert not torch.equal(one[0][0], one[1][0])
    assert not torch.equal(one[0][0], next(subset_draws(1, 30, 20, 1, 10))[0])
    with pytest.raises(ValueError, match="subsets of 25"):
        next(subset_draws(0, 30, 20, 1, 25))


def test_the_error_leaves_out_one_sample_at_a_time():
    x, y = draw(30, 25)
    found = kid(x, y)
    left = np.array([kid(torch.cat([x[:i], x[i + 1 :]]), y).value for i in range(30)])
    expected = np.sqrt(29 / 30 * ((left - left.mean()) ** 2).sum())
    assert found.standard_error == pytest.approx(expected, rel=1e-9)
    assert found.freedom == 29


def test_unbiased_and_the_error_is_the_spread_over_seeds():
    generator = np.random.default_rng(1)
    y = torch.from_numpy(generator.normal(size=(200, 4)))
    same, other, variances = [], [], []
    for _ in range(400):
        x = torch.from_numpy(generator.normal(size=(50, 4)))
        same.append(kid(x, y).value)
        found = kid(1.3 * x + 0.3, y)
        other.append(found.value)
        variances.append(found.standard_error**2)
    exact_x = torch.from_numpy(generator.normal(size=(4000, 4)))
    # Of one distribution the expectation is 0 but for the reference's own accident.
    accident = kid(exact_x, y).value
    assert np.mean(same) == pytest.approx(accident, abs=4 * np.std(same) / 20)
    assert np.mean(variances) == pytest.approx(np.var(other, ddof=1), rel=0.25)


def test_too_few_rows_and_other_dimensions_are_refused():
    x, y = draw(10, 10)
    with pytest.raises(ValueError, match="three samples"):
        kid(x[:2], y)
    with pytest.raises(ValueError, match="two rows"):
        kid(x, y[:1])
    with pytest.raises(ValueError, match="no distance"):
        kid(x, y[:, :3])
