"""What a pass over images leaves: batches, seeds, files."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics.blocks import whole
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.state import State
from ctm_core.runtime.files import load_tensors, save_tensors

N, DIM, CLASSES, SPATIAL = 50, 6, 4, 9
EVERYTHING = ("moments", "features", "probabilities", "spatial", "nearest")


def outputs(seed=0, n=N):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(generator.normal(size=shape)).float()  # noqa: E731
    return {
        "features": draw(n, DIM),
        "probabilities": draw(n, CLASSES).softmax(1),
        "spatial": draw(n, SPATIAL),
        "nearest": draw(n).abs().double(),
    }


def filled(needs=EVERYTHING, seed=0, batch=7, **options):
    state = State(N, needs, **options)
    for start in range(0, N, batch):
        rows = slice(start, start + batch)
        state.update({name: part[rows] for name, part in outputs(seed).items()})
    return state


def equal(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-12, atol=1e-12)


def test_only_what_is_needed_is_held():
    assert filled([]).held == filled(["moments"]).held == {"moments"}
    assert filled(["features"]).held == {"moments", "features"}
    assert filled(["probabilities"]).held == {"moments", "probabilities"}
    assert filled().held == set(EVERYTHING)
    with pytest.raises(ValueError, match="no features here"):
        _ = filled([])["features"]


def test_memory_does_not_grow_with_samples_unless_features_are_needed():
    sizes = {}
    for n in (40, 400):
        state = State(n, ["spatial", "probabilities"])
        state.update(outputs(n=n))
        sizes[n] = sum(value.nbytes for value in state.tensors().values())
    assert sizes[40] == sizes[400]


@pytest.mark.parametrize("batch", [1, 13, N])
def test_batches_do_not_matter(batch):
    equal(filled(batch=batch).tensors(), filled(batch=7).tensors())


def test_values_are_those_of_the_samples():
    state, given = filled(keep=20), outputs()
    expected = Moments.of(given["features"])
    torch.testing.assert_close(whole(state.moments()).covariance(), expected.covariance())
    spatial = whole(state.moments("spatial"))
    torch.testing.assert_close(spatial.mean, Moments.of(given["spatial"]).mean)
    assert torch.equal(state["features"], given["features"][:20])
    assert torch.equal(state["nearest"], given["nearest"])
    assert int(state["scores.n"].sum()) == N


def test_a_file_and_back(tmp_path):
    state = filled()
    tensors = state.tensors()
    save_tensors(tmp_path / "cell.safetensors", tensors, {})
    again = State.from_tensors(load_tensors(tmp_path / "cell.safetensors")[0])
    assert again.held == state.held and again.samples == N
    assert all(torch.equal(value, tensors[name]) for name, value in again.tensors().items())
    for missing in ("samples", "moments.n", "scores.n"):
        with pytest.raises(ValueError, match="missing"):
            State.from_tensors({k: v for k, v in tensors.items() if k != missing})
    assert tensors["moments.scatter"].shape == (4, DIM, DIM)
    for name, wrong in (
        ("moments.n", tensors["moments.n"][:3]),
        ("moments.n", tensors["moments.n"][:0]),
        ("moments.mean", tensors["moments.mean"].float()),
        ("spatial.scatter", tensors["spatial.scatter"][:, :2]),
        ("features", tensors["features"][:, 0]),
        ("features", tensors["features"][:, :3]),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            State.from_tensors(tensors | {name: wrong})


def test_seeds_merge():
    one, two = filled(keep=20), filled(seed=1, keep=20)
    both = one.merge(two)
    assert both.samples == 2 * N and len(both.moments()) == 8
    rows = torch.cat([outputs()["features"], outputs(1)["features"]])
    torch.testing.assert_close(
        whole(both.moments()).covariance(), Moments.of(rows).covariance(), rtol=1e-9, atol=1e-9
    )
    assert torch.equal(both["features"], torch.cat([one["features"], two["features"]]))
    equal(State.from_tensors(both.tensors()).tensors(), both.tensors())
    with pytest.raises(ValueError, match="different things"):
        one.merge(filled([]))


def test_a_reference_of_known_moments():
    given = outputs()
    state = State(N, ["features", "spatial"], blocks=1, keep=10)
    state.update(given)
    moments = Moments.of(given["features"])
    assert State.of_moments(moments).held == {"moments"}
    spatial, features = Moments.of(given["spatial"]), given["features"][:10]
    equal(State.of_moments(moments, spatial, features).tensors(), state.tensors())


def test_what_a_metric_computes_of_a_reference_is_remembered():
    state = filled()
    assert state.remembered("a", lambda: 1) == state.remembered("a", lambda: 2) == 1


def test_what_does_not_fit_is_refused():
    given = outputs()
    features = {"features": given["features"]}
    with pytest.raises(ValueError, match="needs spatial"):
        State(N, ["spatial"]).update(features)
    with pytest.raises(ValueError, match="3 rows of probabilities"):
        few = {"probabilities": given["probabilities"][:3]}
        State(N, ["probabilities"]).update(features | few)
    state = State(N - 1, [])
    with pytest.raises(ValueError, match="more than the 49"):
        state.update(given)
    with pytest.raises(ValueError, match="0 of 49"):
        state.tensors()
    with pytest.raises(ValueError, match="NaN"):
        State(N, []).update({"features": given["features"] * torch.nan})
