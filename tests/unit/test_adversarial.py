"""Hinge losses against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ctm_core.objectives.adversarial import (
    hinge_discriminator,
    hinge_generator,
    log_discriminator,
    log_generator,
)


def test_values_at_zero() -> None:
    zero = torch.zeros(4, 16)
    assert hinge_discriminator(zero, zero) == 2
    assert hinge_generator(zero) == 0


def test_saturation_and_sign() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    # relu(1 - 2), relu(1 - 0.5) and relu(1 - 3), relu(1 + 1)
    assert hinge_discriminator(real, fake) == pytest.approx(0.25 + 1.0)
    assert hinge_generator(fake) == pytest.approx(1.0)


def test_lists_are_averaged_by_entry() -> None:
    pair = [torch.full((2, 3), 1.0), torch.full((2, 100), 2.0)]
    assert hinge_generator(pair) == pytest.approx(-1.5)
    assert hinge_discriminator(pair, pair) == pytest.approx(0 + 2.5)
    assert hinge_generator(torch.cat([p.flatten() for p in pair])) != pytest.approx(-1.5)


def test_half_precision_is_averaged_in_single() -> None:
    logits = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    assert hinge_generator(logits).dtype == torch.float32
    assert hinge_generator(logits.double()).dtype == torch.float64


def test_logarithms() -> None:
    real, fake = torch.tensor([2.0, -0.5]).double(), [torch.tensor([-3.0, 100.0]).double()]
    p_real = torch.sigmoid(real)
    p_fake = torch.sigmoid(fake[0][:1])
    # log(1 - p) is -d where p is one but for what float64 resolves.
    expected = (p_fake.neg().log1p() - 100).mean() / 2
    assert float(log_generator(fake)) == pytest.approx(float(expected))
    both = -p_real.log().mean() - expected
    assert float(log_discriminator(real, fake)) == pytest.approx(float(both))
    zero = torch.zeros(3)
    assert float(log_discriminator(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(log_generator(zero)) == pytest.approx(-math.log(2))


def test_gradient_stops_where_the_hinge_is_satisfied() -> None:
    real = torch.tensor([2.0, 0.0], requires_grad=True)
    fake = torch.tensor([-2.0, 0.0], requires_grad=True)
    hinge_discriminator(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [0, -0.5]
    assert fake.grad.tolist() == [0, 0.5]
