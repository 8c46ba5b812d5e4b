"""The inception score against scipy's entropy, as its authors compute it, and closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from ctm_core.evaluation.metrics import state as states
from ctm_core.evaluation.metrics.inception_score import inception_score
from ctm_core.evaluation.metrics.state import State


def probabilities(n, classes=7, seed=0):
    logits = np.random.default_rng(seed).normal(size=(n, classes)) * 3
    return torch.softmax(torch.from_numpy(logits), dim=1)


def streamed(p, batch=9):
    state = State(len(p), {"probabilities"})
    for part in p.split(batch):
        state.update({"features": torch.zeros(len(part), 1), "probabilities": part})
    return state


def as_published(p, splits):
    """Mean and deviation over splits, in the form of the authors' program."""
    values, n = [], len(p)
    for k in range(splits):
        part = p[k * n // splits : (k + 1) * n // splits]
        values.append(np.exp(np.mean([entropy(row, part.mean(axis=0)) for row in part])))
    return np.array(values)


@pytest.mark.parametrize(("n", "splits", "batch"), [(100, 10, 9), (103, 10, 50), (40, 1, 64)])
def test_the_authors_form(n, splits, batch, monkeypatch):
    monkeypatch.setattr(states, "SPLITS", splits)
    p = probabilities(n)
    found = inception_score(streamed(p, batch))
    values = as_published(p.numpy(), splits)
    assert found.value == pytest.approx(values.mean(), rel=1e-10)
    if splits > 1:
        assert found.standard_error == pytest.approx(values.std(ddof=1) / splits**0.5, rel=1e-7)
        assert found.freedom == splits - 1
    else:
        assert found.standard_error is None


def test_certain_and_even_classes_score_their_number_and_equal_ones_score_1(monkeypatch):
    monkeypatch.setattr(states, "SPLITS", 4)
    certain = torch.eye(5).repeat(8, 1)
    assert inception_score(streamed(certain)).value == pytest.approx(5.0, rel=1e-12)
    equal = torch.full((40, 5), 0.2)
    assert inception_score(streamed(equal)).value == pytest.approx(1.0, rel=1e-12)


def test_pooled_seeds_keep_their_splits():
    one, two = probabilities(50), probabilities(70, seed=1)
    merged = streamed(one).merge(streamed(two))
    values = np.concatenate([as_published(one.numpy(), 10), as_published(two.numpy(), 10)])
    assert inception_score(merged).value == pytest.approx(values.mean(), rel=1e-10)


def test_tensors_and_back():
    state = streamed(probabilities(50))
    tensors = state.tensors()
    assert inception_score(State.from_tensors(tensors)) == inception_score(state)
    with pytest.raises(ValueError, match="missing"):
        State.from_tensors({k: v for k, v in tensors.items() if k != "scores.probabilities"})
    with pytest.raises(ValueError, match="does not fit"):
        State.from_tensors(tensors | {"scores.n": tensors["scores.n"][:3]})


def test_logits_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        streamed(torch.randn(4, 3))
