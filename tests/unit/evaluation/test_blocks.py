"""Moments in blocks of sample index."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics.blocks import bounds, groups, left_out, pieces, whole
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.state import State


def draw(n, dim=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, dim))) + 3.0


def filled(features, count, batch):
    state = State(len(features), (), blocks=count)
    for start in range(0, len(features), batch):
        state.update({"features": features[start : start + batch]})
    return state


def close(moments, rows):
    assert moments.n == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        moments.covariance(), np.cov(rows.numpy(), rowvar=False), rtol=1e-10, atol=1e-13
    )


def test_bounds_cover_everything_in_nearly_equal_parts():
    assert bounds(10, 4) == [0, 2, 5, 7, 10]
    with pytest.raises(ValueError, match="do not make 5 blocks"):
        bounds(4, 5)
    assert list(pieces(10, 4, 4, 4)) == [(1, slice(0, 1)), (2, slice(1, 3)), (3, slice(3, 4))]


@pytest.mark.parametrize("batch", [1, 7, 16, 100])
def test_blocks_are_slices_of_the_samples_at_any_batch_size(batch):
    features = draw(37)
    blocks = filled(features, 4, batch).moments()
    edges = bounds(37, 4)
    for block, part in enumerate(blocks):
        close(part, features[edges[block] : edges[block + 1]])
    close(whole(blocks), features)
    for group, half in enumerate(groups(blocks, 2)):
        close(half, features[edges[2 * group] : edges[2 * group + 2]])


def test_left_out():
    features = draw(41)
    blocks = filled(features, 8, 10).moments()
    edges = bounds(41, 8)
    for block, rest in enumerate(left_out(blocks)):
        close(rest, torch.cat([features[: edges[block]], features[edges[block + 1] :]]))


def test_a_part_must_be_smaller_than_the_whole():
    everything = Moments.of(draw(5))
    with pytest.raises(ValueError, match="no part"):
        everything.without(everything)
    with pytest.raises(ValueError, match="no part"):
        everything.without(Moments.of(draw(2, dim=3)))


def test_seeds_stand_side_by_side():
    one, two = draw(20), draw(12, seed=1)
    merged = filled(one, 4, 5).merge(filled(two, 4, 5)).moments()
    assert [part.n for part in merged] == [5, 5, 5, 5, 3, 3, 3, 3]
    close(whole(merged), torch.cat([one, two]))
    close(groups(merged, 2)[1], two)
    with pytest.raises(ValueError, match="equal groups"):
        groups(merged, 3)
    with pytest.raises(ValueError, match="do not merge"):
        filled(one, 4, 5).merge(filled(draw(4, dim=2), 2, 4))
