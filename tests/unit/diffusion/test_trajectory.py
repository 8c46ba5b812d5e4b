"""ctm_core.diffusion.trajectory: D, g, G over a network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.runtime.errors import UserError

VARIANCE = 0.3


class GaussianNetwork(nn.Module):
    """The raw network whose D and G are exact for data N(0, v): closed forms in t and s.

    D = v x / (v + t^2), G = x sqrt((v + s^2) / (v + t^2)); F follows by solving for it.
    """

    label_dim = 0

    def __init__(self, time_s: bool) -> None:
        super().__init__()
        self.time_s = time_s

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_noise_s: Tensor | None,
        labels: Tensor | None,
        augment_labels: Tensor | None,
    ) -> Tensor:
        t = (4 * c_noise).exp()
        s = t if c_noise_s is None else (4 * c_noise_s).exp()
        c_skip, c_out, c_in, _ = scalings(t)
        ratio = s / t
        jump = ((VARIANCE + s**2) / (VARIANCE + t**2)).sqrt()
        slope = torch.where(
            s == t, VARIANCE / (VARIANCE + t**2), (jump - ratio) / (1 - ratio + (s == t).to(t))
        )
        return ((slope - c_skip) / c_out / c_in).view(-1, 1, 1, 1) * x


def tiny(label_dim: int = 0, time_s: bool = True, **kwargs: int) -> Trajectory:
    torch.manual_seed(3)
    network = DDPMpp(
        resolution=4,
        channels=1,
        label_dim=label_dim,
        time_s=time_s,
        model_channels=4,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
        **kwargs,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Trajectory(network)


X = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([80.0, 1.0, 0.01])
S = torch.tensor([1.0, 0.002, 0.005])


def test_definitions() -> None:
    model = tiny()
    c_skip, c_out, _, _ = (c.view(-1, 1, 1, 1) for c in scalings(T))
    raw = model.raw(X, T, S)
    g = c_skip * X + c_out * raw
    torch.testing.assert_close(model.g(X, T, S), g)
    torch.testing.assert_close(model.inner(raw, X, T), g)
    ratio = (S / T).view(-1, 1, 1, 1)
    torch.testing.assert_close(model.G(X, T, S), ratio * X + (1 - ratio) * g)
    torch.testing.assert_close(model.jump(raw, X, T, S), model.G(X, T, S))
    assert model.output_weight is model.model.output_weight


@given(t=st.floats(0.002, 80), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_jump_onto_itself_is_the_identity(t: float, seed: int) -> None:
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    time = torch.tensor(t)
    assert torch.equal(tiny().G(x, time, time.clone()), x)


def test_denoiser_is_g_at_s_equal_t() -> None:
    model = tiny()
    assert torch.equal(model.denoise(X, T), model.g(X, T, T.clone()))
    assert torch.equal(model.g(X, T), model.g(X, T, T))


def test_jump_with_the_denoiser_is_an_euler_step() -> None:
    teacher = tiny(time_s=False)
    slope = (X - teacher.denoise(X, T)) / T.view(-1, 1, 1, 1)
    euler = X + (S - T).view(-1, 1, 1, 1) * slope
    raw = teacher.raw(X, T)
    torch.testing.assert_close(teacher.jump(raw, X, T, S), euler, rtol=1e-4, atol=1e-4)


@given(t=st.floats(0.01, 80), shrink=st.floats(0.01, 0.99), again=st.floats(0.01, 0.99))
@settings(max_examples=50)
def test_exact_gaussian_trajectory(t: float, shrink: float, again: float) -> None:
    """With the exact network G is the closed form and jumps compose (semigroup)."""
    model = Trajectory(GaussianNetwork(time_s=True))
    x = X.double()
    s, r = t * shrink, t * shrink * again
    closed = x * ((VARIANCE + s**2) / (VARIANCE + t**2)) ** 0.5
    torch.testing.assert_close(model.G(x, t, s), closed, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        model.G(model.G(x, t, s), s, r), model.G(x, t, r), rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(model.denoise(x, t), VARIANCE * x / (VARIANCE + t**2))


def test_times_may_be_numbers_scalars_or_vectors() -> None:
    model = tiny()
    expected = model.G(X, torch.full((3,), 2.0), torch.full((3,), 0.5))
    for t, s in (
        (2.0, 0.5),
        (torch.tensor(2.0), torch.tensor(0.5, dtype=torch.float64)),
        (torch.full((3,), 2.0, dtype=torch.float64), torch.tensor(0.5)),
    ):
        ours = model.G(X, t, s)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected)


def test_runs_in_double() -> None:
    model = tiny()
    single = model.G(X, T, S)
    double = model.double().G(X.double(), T.double(), S.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


def test_autocast_keeps_the_dtype_of_images() -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.G(X, T, S)
    assert rough.dtype == torch.float32
    assert (rough - model.G(X, T, S)).norm() / X.norm() < 0.1


def test_labels_as_classes_or_one_hot() -> None:
    model = tiny(label_dim=3)
    y = torch.tensor([2, 0, 1])
    one_hot = torch.eye(3)[y]
    assert torch.equal(model.G(X, T, S, y), model.G(X, T, S, one_hot))
    assert torch.equal(model.denoise(X, T), model.denoise(X, T, torch.zeros(3, 3)))
    assert not torch.allclose(model.denoise(X, T, y), model.denoise(X, T))
    with pytest.raises(UserError, match="unconditional"):
        tiny().denoise(X, T, y)


def test_a_teacher_only_denoises() -> None:
    teacher = tiny(time_s=False, augment_dim=2)
    assert not teacher.time_s
    assert torch.equal(teacher.g(X, T), teacher.denoise(X, T))
    assert torch.equal(teacher.raw(X, T, T), teacher.raw(X, T))
    told = teacher.denoise(X, T, None, torch.ones(3, 2))
    assert not torch.allclose(told, teacher.denoise(X, T))
    for call in (teacher.raw, teacher.g, teacher.G):
        with pytest.raises(UserError, match="cannot jump"):
            call(X, T, S)


def test_gradient_flows_through_input_and_weights() -> None:
    model = tiny()
    x = X.clone().requires_grad_()
    model.G(x, T, S).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert model.output_weight.grad is not None and model.output_weight.grad.abs().sum() > 0


def test_state_keys_start_with_model() -> None:
    assert all(key.startswith("model.") for key in tiny().state_dict())


@pytest.mark.parametrize(("inner", "end"), [("cm", 0.002), ("edm", 0.0), ("ect", 0.0)])
def test_a_model_of_one_end_jumps_there_and_does_not_denoise(inner: str, end: float) -> None:
    network = tiny(time_s=False).model
    model = Trajectory(network, inner=inner, end=None if inner == "cm" else end).eval()
    assert model.consistency and model.has_jumps and model.end == end
    assert torch.equal(model.G(X, T, end), model.g(X, T))
    for s in (0.01, S):
        with pytest.raises(UserError, match=f"it jumps to time {end:g} alone"):
            model.G(X, T, s)
    with pytest.raises(UserError, match=f"no denoiser: it jumps to time {end:g} alone"):
        model.denoise(X, T)


def test_ect_is_shifted_where_it_is_sampled() -> None:
    network = tiny(time_s=False).model
    model, plain = Trajectory(network, inner="ect", end=0.0), Trajectory(network)
    shifted = Trajectory(network, inner="cm", sigma_min=0.003)
    assert torch.equal(model.train().g(X, T), plain.g(X, T))
    assert torch.equal(model.eval().g(X, T), shifted.g(X, T))
    assert not torch.equal(model.eval().g(X, T), plain.g(X, T))
