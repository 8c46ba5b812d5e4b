"""What a pass over images leaves: batches, seeds, files."""

import numpy as np
import pytest
import torch

from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.state import METRICS, Outputs, State, needs
from ctm_core.runtime.files import load_tensors, save_tensors

N, DIM, CLASSES, SPATIAL = 50, 6, 4, 9


def outputs(seed=0, n=N):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(generator.normal(size=shape)).float()  # noqa: E731
    return Outputs(
        draw(n, DIM), draw(n, CLASSES).softmax(1), draw(n, SPATIAL), draw(n).abs().double()
    )


def part(whole, rows):
    return Outputs(
        whole.features[rows], whole.probabilities[rows], whole.spatial[rows], whole.nearest[rows]
    )


def filled(metrics=METRICS, seed=0, batch=7, **options):
    whole, state = outputs(seed), State(N, metrics, **options)
    for start in range(0, N, batch):
        state.update(part(whole, slice(start, start + batch)))
    return state


def equal(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-12, atol=1e-12)


def test_only_what_a_metric_needs_is_held():
    assert needs(["fd", "trajectory"]) == {"moments"}
    assert filled(["fd"]).held == {"moments"}
    assert filled(["fd", "kid"]).held == {"moments", "features"}
    assert filled(["is"]).held == {"moments", "probabilities"}
    assert filled().held == {"moments", "features", "probabilities", "spatial", "nearest"}
    with pytest.raises(ValueError, match="unknown metric 'fid'"):
        State(N, ["fid"])
    with pytest.raises(ValueError, match="no features here"):
        _ = filled(["fd"]).features


def test_memory_does_not_grow_with_samples_unless_features_are_needed():
    sizes = {}
    for n in (40, 400):
        state = State(n, ["fd", "sfid", "is"])
        state.update(outputs(n=n))
        sizes[n] = sum(value.nbytes for value in state.tensors().values())
    assert sizes[40] == sizes[400]


@pytest.mark.parametrize("batch", [1, 13, N])
def test_batches_do_not_matter(batch):
    equal(filled(batch=batch).tensors(), filled(batch=7).tensors())


def test_values_are_those_of_the_samples():
    state, whole = filled(keep=20), outputs()
    expected = Moments.of(whole.features)
    torch.testing.assert_close(state.moments.whole().covariance(), expected.covariance())
    torch.testing.assert_close(state.spatial.whole().mean, Moments.of(whole.spatial).mean)
    assert torch.equal(state.features, whole.features[:20])
    assert torch.equal(state.nearest, whole.nearest)
    assert int(state.probabilities.n.sum()) == N


def test_a_file_and_back(tmp_path):
    state = filled()
    save_tensors(tmp_path / "cell.safetensors", state.tensors(), {})
    again = State.from_tensors(load_tensors(tmp_path / "cell.safetensors")[0])
    equal(again.tensors(), state.tensors())
    assert again.held == state.held and again.samples == N
    tensors = state.tensors()
    for missing in ("samples", "moments.n", "scores.n"):
        with pytest.raises(ValueError, match="missing"):
            State.from_tensors({k: v for k, v in tensors.items() if k != missing})


def test_seeds_merge():
    one, two = filled(keep=20), filled(seed=1, keep=20)
    both = one.merge(two)
    assert both.samples == 2 * N and len(both.moments.parts) == 8
    whole = torch.cat([outputs().features, outputs(1).features])
    torch.testing.assert_close(
        both.moments.whole().covariance(), Moments.of(whole).covariance(), rtol=1e-9, atol=1e-9
    )
    assert torch.equal(both.features, torch.cat([one.features, two.features]))
    equal(State.from_tensors(both.tensors()).tensors(), both.tensors())
    with pytest.raises(ValueError, match="different things"):
        one.merge(filled(["fd"]))


def test_a_reference_holds_one_block_and_the_distances_of_others():
    whole = outputs()
    real = State.reference(N, METRICS, keep=10)
    real.update(Outputs(whole.features, spatial=whole.spatial))
    real.add_nearest(torch.ones(5))
    assert len(real.moments.parts) == 1 and len(real.features) == 10
    assert real.nearest.tolist() == [1.0] * 5
    known = State.of_moments(Moments.of(whole.features))
    assert known.held == {"moments"}
    equal(known.moments.tensors(), real.moments.tensors())


def test_what_does_not_fit_is_refused():
    whole = outputs()
    with pytest.raises(ValueError, match="needs spatial"):
        State(N, ["sfid"]).update(Outputs(whole.features))
    with pytest.raises(ValueError, match="3 rows of probabilities"):
        State(N, ["is"]).update(Outputs(whole.features, whole.probabilities[:3]))
    state = State(N - 1, ["fd"])
    with pytest.raises(ValueError, match="more than the 49"):
        state.update(whole)
    with pytest.raises(ValueError, match="0 of 49"):
        state.tensors()
    with pytest.raises(ValueError, match="NaN"):
        State(N, ["fd"]).update(Outputs(whole.features * torch.nan))
