"""Coefficients around a network: what each parametrisation promises, and loss weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm_core.diffusion import scalings as module
from ctm_core.diffusion.scalings import (
    inner_coefficients,
    loss_weight,
    outer_coefficients,
    scalings,
)
from ctm_core.runtime.errors import UserError

T = torch.logspace(-2.5, 1.9, 20, dtype=torch.float64)
ONE = torch.ones_like(T)


def test_scalings_normalise_variance() -> None:
    """Input and training target of the network have unit variance (EDM, appendix B.6)."""
    c_skip, c_out, c_in, c_noise = scalings(T, 0.7)
    total = T**2 + 0.7**2
    torch.testing.assert_close(c_in**2 * total, ONE)
    # Variance of the network's target (y - c_skip (y + n)) / c_out is one.
    torch.testing.assert_close(((1 - c_skip) ** 2 * 0.7**2 + c_skip**2 * T**2) / c_out**2, ONE)
    torch.testing.assert_close(c_noise, T.log() / 4)


def test_inner_coefficients() -> None:
    ours = inner_coefficients("edm", T, sigma_data=0.7)
    torch.testing.assert_close(tuple(ours), tuple(scalings(T, 0.7)[:2]))
    assert [float(c) for c in inner_coefficients("no", torch.tensor(3.0))] == [0, 1]
    # A consistency model is the identity at sigma_min, and EDM's in the limit.
    start = torch.tensor(0.01, dtype=torch.float64)
    assert [float(c) for c in inner_coefficients("cm", start, sigma_min=0.01)] == [1, 0]
    for ours, edm in zip(
        inner_coefficients("cm", T, sigma_min=0.0), inner_coefficients("edm", T), strict=True
    ):
        torch.testing.assert_close(ours, edm)


@pytest.mark.parametrize("name", module.OUTER)
@given(t=st.floats(0.002, 80), share=st.floats(0, 1))
def test_outer_coefficients(name: str, t: float, share: float) -> None:
    times = torch.tensor([t, t], dtype=torch.float64)
    s = torch.tensor([t, 0.002 + share * (t - 0.002)], dtype=torch.float64)
    c_skip, c_out = outer_coefficients(name, times, s)
    # G(x, t, t) = x, whatever the network says.
    torch.testing.assert_close(c_skip[0], torch.tensor(1.0, dtype=torch.float64))
    assert c_out[0] == 0
    torch.testing.assert_close(c_out, 1 - s / times)
    assert 0 <= c_skip[1] <= 1 + 1e-12


def test_outer_variance_keeps_the_ratio_of_spreads() -> None:
    t, s = torch.tensor([2.0, 0.5]), torch.tensor([0.5, 0.1])
    c_skip, _ = outer_coefficients("variance", t, s, sigma_data=0.3, sigma_min=0.0)
    torch.testing.assert_close(c_skip, ((s**2 + 0.09) / (t**2 + 0.09)).sqrt())
    mixed, _ = outer_coefficients("euler_variance_mixed", t, s, sigma_data=0.3, sigma_min=0.0)
    # The mean of s/t and of the variance ratio, weighted t : 1.
    torch.testing.assert_close(mixed, (t * (s / t) + c_skip) / (t + 1))


def test_loss_weights() -> None:
    s = T / 2
    ours = {name: loss_weight(name, T, s, sigma_data=0.7) for name in module.WEIGHTS}
    assert all(value.shape == T.shape and value.dtype == T.dtype for value in ours.values())
    torch.testing.assert_close(ours["karras"], ours["karras_weight"])
    torch.testing.assert_close(ours["karras"] * scalings(T, 0.7).c_out ** 2, ONE)
    torch.testing.assert_close(ours["snr+1"] - ours["snr"], ONE)
    torch.testing.assert_close(ours["truncated-snr"], torch.where(T < 1, T**-2, 1))
    torch.testing.assert_close(ours["sq-t-inverse"] ** -4, ours["snr"])
    torch.testing.assert_close(ours["uniform_g"], 2 * ours["uniform"])


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="'vp'; allowed: edm, cm, no"):
        inner_coefficients("vp", T)
    with pytest.raises(UserError, match="'linear'; allowed: euler, "):
        outer_coefficients("linear", T, T)
    with pytest.raises(UserError, match="'min-snr'; allowed: uniform, "):
        loss_weight("min-snr", T)
    with pytest.raises(UserError, match="uniform_g depends on s"):
        loss_weight("uniform_g", T)
