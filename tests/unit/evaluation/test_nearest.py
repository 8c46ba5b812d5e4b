"""Distances to the training set, and what they say of memorisation."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from ctm_core.evaluation.metrics import nearest
from ctm_core.evaluation.metrics.nearest import find_nearest, memorisation, nearest_distances
from ctm_core.evaluation.metrics.subsampling import Estimate


def images(n, seed, side=6, channels=3):
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 256, (n, channels, side, side), dtype=np.uint8))


@pytest.mark.parametrize("piece", [7, 8192])
def test_scikit_learn_and_copies(monkeypatch, piece):
    monkeypatch.setattr(nearest, "PIECE", piece)
    training = images(40, 0)
    samples = torch.cat([images(9, 1), training[[3, 17]]])
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(
        training.flatten(1).double().numpy()
    )
    expected = search.kneighbors(samples.flatten(1).double().numpy())[0][:, 0] / 108**0.5
    found = nearest_distances(samples, training)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-4)
    assert found[-2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("piece", [1, 2, 8192])
def test_the_nearest_of_a_few_levels(monkeypatch, tmp_path, piece):
    """Ties go to the first, also across pieces; memory-mapped images need not be writable."""
    monkeypatch.setattr(nearest, "PIECE", piece)
    levels = torch.tensor([200, 10, 90, 10, 250], dtype=torch.uint8)[:, None, None, None]
    samples = torch.tensor([0, 11, 50, 255, 90, 225], dtype=torch.uint8)[:, None, None, None]
    np.save(tmp_path / "images.npy", levels.numpy())
    for training in (levels, np.load(tmp_path / "images.npy", mmap_mode="r")):
        found = find_nearest(samples, training)
        assert found.indices.tolist() == [1, 1, 1, 4, 2, 0]
        assert found.distances.tolist() == [10.0, 1.0, 40.0, 5.0, 0.0, 25.0]
    own = torch.tensor([1, 3, 2])
    assert find_nearest(levels[own], levels, own=own).indices.tolist() == [3, 1, 1]


def test_scikit_learns_area_under_the_curve_and_the_ratio_of_medians():
    generator = np.random.default_rng(0)
    samples = torch.from_numpy(generator.integers(0, 30, 70)).double()
    held_out = torch.from_numpy(generator.integers(5, 40, 50)).double()
    found = memorisation(samples, held_out)
    truth = np.concatenate([np.ones(70), np.zeros(50)])
    area = roc_auc_score(truth, -torch.cat([samples, held_out]).numpy())
    assert found.probability.value == pytest.approx(area, rel=1e-12)
    assert found.ratio == pytest.approx(np.median(samples) / np.median(held_out), rel=1e-12)
    assert found.probability.freedom == 69


def test_copies_score_1_and_held_out_images_themselves_one_half():
    training, held_out = images(50, 0), images(50, 1)
    base = nearest_distances(held_out, training)
    copies = memorisation(nearest_distances(training, training), base)
    assert copies == (Estimate(1.0, 0.0, 49), 0.0)
    assert memorisation(base, base).probability.value == pytest.approx(0.5)
    noise = nearest_distances(images(50, 2), training)
    assert memorisation(noise, base).probability.value == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("piece", [5, 8192])
def test_training_images_beside_the_others(monkeypatch, piece):
    monkeypatch.setattr(nearest, "PIECE", piece)
    training, own = images(23, 0), torch.tensor([22, 0, 7])
    training[7] = training[3]
    found = nearest_distances(training[own], training, own=own)
    for distance, row in zip(found, own.tolist(), strict=True):
        others = torch.cat([training[:row], training[row + 1 :]])
        assert distance == nearest_distances(training[row : row + 1], others)
    assert found[2] == 0 and found[0] > 0  # a copy of another one counts


def test_no_ratio_where_held_out_images_are_copies():
    found = memorisation(torch.tensor([1.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double())
    assert found.ratio is None and found.probability.value == pytest.approx(1 / 6)


def test_other_sizes_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="no nearest"):
        nearest_distances(images(2, 0), images(2, 0, side=5))
    with pytest.raises(ValueError, match="empty"):
        memorisation(torch.ones(3), torch.ones(0))
