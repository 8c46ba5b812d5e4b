"""Averages follow their recursion, and gradient passes through a frozen copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ctm_core.training import ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def test_update_is_the_recursion() -> None:
    student = network()
    average = ema.frozen_copy(student)
    expected = {name: value.clone() for name, value in student.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for value in student.parameters():
                value.add_(torch.randn_like(value))
        student[1].running_mean += step
        ema.update(average, student, 0.9, step)
        for name, value in student.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
    for name, value in average.named_parameters():
        torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(average[1].running_mean, student[1].running_mean)


def test_half_life_is_limited_while_ramping_up() -> None:
    for step in (0, 9, 99):
        mu = ema.decay(0.9999, step, 0.05)
        assert mu ** (0.05 * (step + 1)) == pytest.approx(0.5)
    assert ema.decay(0.9, 10**6, 0.05) == 0.9
    assert ema.decay(0.9, 0, None) == 0.9


def test_a_frozen_copy_passes_gradient_to_its_input_alone() -> None:
    student = network()
    frozen = ema.frozen_copy(student)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    frozen(x).square().sum().backward()
    assert x.grad is not None and x.grad.norm() > 0
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student[0].weight.zero_()
    assert frozen[0].weight.norm() > 0


def test_memory_format_is_kept() -> None:
    student = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    average = ema.frozen_copy(student)
    ema.update(average, student, 0.5, 0)
    assert average.weight.stride() == student.weight.stride()
    assert average.weight.is_contiguous(memory_format=torch.channels_last)
