"""What a notebook gets."""

from __future__ import annotations

import pytest
import torch
from fixtures.tiny import Trained

import ctm_core
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError


def test_a_student(student: Trained) -> None:
    model = ctm_core.load(student.weights)
    assert model.record["model"] == "ctm"
    one = model.sample(5, seed=2, batch_size=8)
    assert (one.dtype, one.shape) == (torch.uint8, (5, 1, 8, 8))
    same = Generator.from_file(student.weights).images(
        5, sampler="gamma", nfe=1, gamma=0.0, seed=2, batch_size=8
    )
    assert torch.equal(one, same)
    y = torch.tensor([3, 4])
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.G(x, 2.0, 2.0, y), x)
    # At sigma_min a jump is the identity up to the last bit, so a short one hardly moves.
    torch.testing.assert_close(model.G(x, 0.0021, 0.002, y), x, atol=0.2, rtol=0)
    assert model.denoise(x, torch.tensor([1.0, 2.0]), y).shape == x.shape
    assert not model.G(x, 80, 1, y).requires_grad


def test_explicit_labels_decide(student: Trained) -> None:
    model = ctm_core.load(student.weights)
    zeros, ones = (model.sample(6, labels=torch.full((6,), c), batch_size=8) for c in (0, 1))
    assert not torch.equal(zeros, ones)


def test_a_teacher_solves_and_does_not_jump(teacher: Trained) -> None:
    model = ctm_core.load(teacher.weights)
    assert model.sample(2, nfe=3, batch_size=2).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match="cannot jump"):
        model.G(torch.zeros(1, 1, 8, 8), 2.0, 1.0)


def test_gamma_of_a_teacher_is_refused_not_ignored(teacher: Trained, student: Trained) -> None:
    with pytest.raises(UserError, match="has no gamma"):
        ctm_core.load(teacher.weights).sample(2, nfe=3, gamma=0.5, batch_size=2)
    with pytest.raises(UserError, match="at least one evaluation, not nfe = 0"):
        ctm_core.load(student.weights).sample(2, nfe=0, batch_size=2)


def test_samplers_by_name(student: Trained) -> None:
    model = ctm_core.load(student.weights)
    options = {"batch_size": 4, "seed": 1}
    exact = model.sample(4, 4, **options)
    assert torch.equal(exact, model.sample(4, 4, 0.0, sampler="gamma_paper", **options))
    assert not torch.equal(exact, model.sample(4, 4, 1.0, **options))
    through = model.sample(4, gamma=1, times=[0.8], **options)
    assert torch.equal(through, model.sample(4, 2, 1.0, times=(0.8,), **options))
    assert not torch.equal(through, model.sample(4, 2, 1.0, **options))
    for sampler, nfe in (("heun", 5), ("euler", 4)):
        assert model.sample(4, nfe, sampler=sampler, **options).shape == (4, 1, 8, 8)


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors is missing"):
        ctm_core.load("nowhere.safetensors")
