"""From states to rows: names, order, errors, and values of the metrics themselves."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics import scoring
from ctm_core.evaluation.metrics.density_coverage import density_coverage
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.inception_score import inception_score
from ctm_core.evaluation.metrics.kid import kid, kid_of_subsets, subset_draws
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.names import parse
from ctm_core.evaluation.metrics.nearest import memorisation
from ctm_core.evaluation.metrics.precision_recall import precision_recall
from ctm_core.evaluation.metrics.scoring import Settings, scores
from ctm_core.evaluation.metrics.state import METRICS, Outputs, State
from ctm_core.evaluation.metrics.subsampling import delete_d

N, DIM = 120, 5


def outputs(n, shift=0.0, seed=0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(generator.normal(size=shape)).float()  # noqa: E731
    return Outputs(
        draw(n, DIM) + shift, draw(n, 3).softmax(1), draw(n, 7), draw(n).abs().double() + 1
    )


@pytest.fixture
def pair():
    ours, real = outputs(N), outputs(90, shift=0.3, seed=1)
    state = State(N, METRICS, blocks=8)
    state.update(ours)
    reference = State.reference(90, METRICS)
    reference.update(real)
    reference.add_nearest(real.nearest)
    return ours, state, real, reference


def test_every_metric_of_a_protocol(pair):
    ours, state, real, reference = pair
    rows = scores(state, reference, Settings("net", METRICS))
    found = {row["metric"]: row for row in rows}
    x, y = ours.features, real.features
    shares, dense = precision_recall(x, y), density_coverage(x, y)
    near = memorisation(ours.nearest, real.nearest)
    expected = {
        "fd_net_120": frechet_distance(Moments.of(y), Moments.of(x)).value,
        "kid_net_120": kid(x, y).value,
        "is_net_120": inception_score(state.probabilities).value,
        "sfid_net_120": frechet_distance(Moments.of(real.spatial), Moments.of(ours.spatial)).value,
        "precision_net_120": shares.precision.value,
        "recall_net_120": shares.recall.value,
        "density_net_120": dense.density.value,
        "coverage_net_120": dense.coverage.value,
        "memorisation_120": near.probability.value,
        "memorisation_ratio_120": near.ratio,
    }
    # 120/4 samples are at least 4 · 5, so the distance is extrapolated too.
    extra = ["fd_net_60", "fd_net_30", "fd_net_inf"]
    assert list(found) == [*list(expected)[:1], *extra, *list(expected)[1:]]
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-9)
        assert found[name]["n"] == parse(name).n == 120
    assert not any(row["rank_deficient"] for row in rows)
    assert [found[name]["n"] for name in extra] == [60, 30, 120]


def test_errors_of_the_distances_on_demand(pair):
    _, state, _, reference = pair
    (row, *_) = scores(state, reference, Settings("net", ["fd"]))
    assert row["standard_error"] is None and row["freedom"] is None
    (row, *_) = scores(state, reference, Settings("net", ["fd"], errors=True))
    real = reference.moments.whole()
    left = [frechet_distance(real, part).value for part in state.moments.left_out()]
    assert row["standard_error"] == delete_d(0.0, left).standard_error > 0
    assert row["freedom"] == 7


def test_kid_over_subsets(pair):
    ours, state, real, reference = pair
    settings = Settings("net", ["kid"], kid_subsets=4, kid_size=30)
    (row,) = scores(state, reference, settings)
    draws = subset_draws(0, N, 90, 4, 30)
    assert row["value"] == kid_of_subsets(ours.features, real.features, draws).value


def test_fid_is_a_published_protocol_with_enough_samples(monkeypatch, pair):
    _, state, _, reference = pair
    (row, *_) = scores(state, reference, Settings("inception", ["fd"], published=True))
    assert row["metric"] == "fd_inception_120"
    monkeypatch.setattr(scoring, "FID_SAMPLES", 120)
    (row, *_) = scores(state, reference, Settings("inception", ["fd"], published=True))
    assert row["metric"] == "fid"
    (row, *_) = scores(state, reference, Settings("inception", ["fd"]))
    assert row["metric"] == "fd_inception_120"


def test_few_samples_are_marked_and_not_extrapolated(pair):
    _, _, _, reference = pair
    state = State(4, ["fd"])
    state.update(outputs(4))
    (row,) = scores(state, reference, Settings("net"))
    assert row["rank_deficient"] and row["metric"] == "fd_net_4"


def test_what_the_reference_lacks_is_named(pair):
    _, state, real, _ = pair
    reference = State.of_moments(Moments.of(real.features))
    with pytest.raises(ValueError, match="no features here"):
        scores(state, reference, Settings("net", ["kid"]))
    with pytest.raises(ValueError, match="unknown metric 'fid'"):
        scores(state, reference, Settings("net", ["fid"]))
