"""From states to rows: names, order, errors, and values of the metrics themselves."""

import numpy as np
import pytest
import torch

from ctm_core.config import protocols
from ctm_core.config.metric_registry import METRICS
from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.blocks import left_out, whole
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.inception_score import inception_score
from ctm_core.evaluation.metrics.kid import kid, kid_of_subsets, subset_draws
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.names import parse
from ctm_core.evaluation.metrics.nearest import memorisation
from ctm_core.evaluation.metrics.prdc import density_coverage, precision_recall
from ctm_core.evaluation.metrics.scoring import metric_function, scores
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import delete_d

N, DIM = 120, 5
EVERY = [name for name, known in METRICS.items() if known.needs and name != "fid"]


def protocol(*metrics, **changes):
    described = {
        "name": "p",
        "features": "inception",
        "input_size": 32,
        "resize": "inside",
        "reference": {"dataset": "digits"},
        "metrics": metrics,
        "samples": N,
    }
    return Protocol.model_validate(described | changes)


def outputs(n, shift=0.0, seed=0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(generator.normal(size=shape)).float()  # noqa: E731
    return {
        "features": draw(n, DIM) + shift,
        "probabilities": draw(n, 3).softmax(1),
        "spatial": draw(n, 7),
        "nearest": draw(n).abs().double() + 1,
    }


@pytest.fixture
def pair():
    ours, real = outputs(N), outputs(90, shift=0.3, seed=1)
    state = State(N, protocol(*EVERY).needs, blocks=8)
    state.update(ours)
    reference = State(90, ["features", "spatial", "nearest"], blocks=1)
    reference.update(real)
    return ours, state, real, reference


def test_every_metric_has_its_function():
    for metric, known in METRICS.items():
        if known.needs not in ("", "teacher"):
            assert callable(metric_function(metric))


def test_every_metric_of_a_protocol(pair):
    ours, state, real, reference = pair
    rows = scores(state, reference, protocol(*EVERY))
    found = {row["metric"]: row for row in rows}
    x, y = ours["features"], real["features"]
    shares, dense = precision_recall(x, y, 3), density_coverage(x, y, 5)
    near = memorisation(ours["nearest"], real["nearest"])
    expected = {
        "fd_inception_120": frechet_distance(Moments.of(y), Moments.of(x)).value,
        "kid_inception_120": kid(x, y).value,
        "sfid_inception_120": frechet_distance(
            Moments.of(real["spatial"]), Moments.of(ours["spatial"])
        ).value,
        "is_inception_120": inception_score(state).value,
        "precision_inception_120": shares["precision"].value,
        "recall_inception_120": shares["recall"].value,
        "density_inception_120": dense["density"].value,
        "coverage_inception_120": dense["coverage"].value,
        "memorisation_120": near.probability.value,
        "memorisation_ratio_120": near.ratio,
    }
    # 120/4 samples are at least 4 · 5, so the distance is extrapolated too.
    extra = ["fd_inception_60", "fd_inception_30", "fd_inception_inf"]
    assert list(found) == [*list(expected)[:1], *extra, *list(expected)[1:]]
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-9)
        assert found[name]["n"] == parse(name).n == 120
    assert not any(row["rank_deficient"] for row in rows)
    assert [found[name]["n"] for name in extra] == [60, 30, 120]


def test_fewer_metrics_in_their_order(pair):
    _, state, _, reference = pair
    rows = scores(state, reference, protocol("is", "trajectory", "kid"))
    assert [row["metric"] for row in rows] == ["is_inception_120", "kid_inception_120"]


def test_errors_of_the_distances_on_demand(pair):
    _, state, _, reference = pair
    (row, *_) = scores(state, reference, protocol("fd"))
    assert row["standard_error"] is None and row["freedom"] is None
    (row, *_) = scores(state, reference, protocol("fd"), errors=True)
    real = whole(reference.moments())
    left = [frechet_distance(real, part).value for part in left_out(state.moments())]
    assert row["standard_error"] == delete_d(0.0, left).standard_error > 0
    assert row["freedom"] == 7


def test_kid_over_subsets(pair):
    ours, state, real, reference = pair
    (row,) = scores(state, reference, protocol("kid", kid={"subsets": 4, "size": 30}))
    draws = subset_draws(0, N, 90, 4, 30)
    assert row["value"] == kid_of_subsets(ours["features"], real["features"], draws).value


def test_fid_is_a_published_protocol_with_enough_samples(monkeypatch, pair):
    _, state, _, reference = pair
    edm = {"asset": "edm-reference-cifar10", "images": 50000, "resolution": 32}
    (row, *_) = scores(state, reference, protocol("fd", reference=edm))
    assert row["metric"] == "fd_inception_120"
    monkeypatch.setattr(protocols, "FID_SAMPLES", 120)
    (row, *_) = scores(state, reference, protocol("fd", reference=edm))
    assert row["metric"] == "fid"
    (again, *_) = scores(state, reference, protocol("fid", reference=edm))
    assert again == row
    (row, *_) = scores(state, reference, protocol("fd"))
    assert row["metric"] == "fd_inception_120"


def test_few_samples_are_marked_and_not_extrapolated(pair):
    _, _, _, reference = pair
    state = State(4, [])
    state.update(outputs(4))
    (row,) = scores(state, reference, protocol("fd"))
    assert row["rank_deficient"] and row["metric"] == "fd_inception_4"


def test_what_the_reference_lacks_is_named(pair):
    _, state, real, _ = pair
    reference = State.of_moments(Moments.of(real["features"]))
    with pytest.raises(ValueError, match="no features here"):
        scores(state, reference, protocol("kid"))
