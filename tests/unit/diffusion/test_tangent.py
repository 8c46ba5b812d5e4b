"""The derivative along a path against finite differences, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core import config
from ctm_core.diffusion.gaussian import exact_model, three_modes
from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.tangent import pair_output, tangent
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.runtime.errors import UserError

T = torch.tensor([0.01, 0.3, 2.0, 40.0], dtype=torch.float64)
S = torch.tensor([0.002, 0.3, 0.1, 9.0], dtype=torch.float64)
LABELS = torch.tensor([2, 0, 1, 2])
SHAPE = (len(T), 3, 8, 8)


def network(architecture: str = "ddpmpp", *, time_s: bool, inner: str = "edm") -> Trajectory:
    """A network with dropout, attention and nothing zero in it, in train mode."""
    torch.manual_seed(0)
    made = weight_file.build_model(
        network=config.Network(
            architecture=architecture,
            model_channels=32,
            channel_mult=(1,),
            num_blocks=1,
            attn_resolutions=(8,),
            dropout=0.3,
            num_heads=1 if architecture == "openai_adm" else None,
        ),
        diffusion=config.Diffusion(),
        resolution=8,
        channels=3,
        label_dim=3,
        time_s=time_s,
        inner=inner,
    )
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return made.train()


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    return x0, noise


def noised(x0: Tensor, noise: Tensor, t: Tensor = T) -> Tensor:
    return x0 + t.view(-1, 1, 1, 1) * noise


def difference(value: Callable[[Tensor], Tensor], h: float = 1e-4) -> Tensor:
    """The central difference of fourth order of a function of times, in ln t at T."""
    near, far = (
        (value(T * k.exp()) - value(T * (-k).exp()))
        for k in h * torch.tensor([1.0, 2.0], dtype=T.dtype)
    )
    return (8 * near - far) / (12 * h)


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert float((ours - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize(
    ("architecture", "time_s", "inner"),
    [
        ("ddpmpp", True, "edm"),
        ("ddpmpp", False, "edm"),
        ("ddpmpp", True, "native"),
        ("openai_adm", True, "edm"),
    ],
)
def test_finite_differences(architecture: str, time_s: bool, inner: str) -> None:
    model = network(architecture, time_s=time_s, inner=inner).double()
    (x0, noise), s = pair(), S if time_s else None
    path = pair_output(inner, x0, noise, T)

    def raw(t: Tensor) -> Tensor:
        torch.manual_seed(5)  # the same dropout masks
        with torch.no_grad():
            return model.raw(noised(x0, noise, t), t, s, LABELS)

    torch.manual_seed(5)
    f, j = tangent(model, noised(x0, noise), T, s, path, LABELS)
    assert torch.equal(f, raw(T))
    close(j, difference(raw))
    assert not f.requires_grad and not j.requires_grad


def test_along_the_exact_flow() -> None:
    """F_v of a denoiser's own flow: the mixture's trajectory through x, solved independently."""
    mixture = three_modes()
    model = exact_model(mixture)
    x0, noise = (part[..., :1, :1, :2] for part in pair())
    x = noised(x0, noise)[:, :1]
    _, j = tangent(model, x, T, None, model.raw(x, T).detach())

    def raw(t: Tensor) -> Tensor:
        return model.raw(mixture.flow(x, T, t), t).detach()

    # s follows t in the denoiser, which the mixture's network reads as s = t.
    close(j, difference(raw, 1e-3), 1e-5)


def test_masks_are_those_of_the_next_call() -> None:
    model, (x0, noise) = network(time_s=True), pair()
    x, path = noised(x0, noise).float(), pair_output("edm", x0, noise, T).float()
    state = torch.get_rng_state()
    f, _ = tangent(model, x, T, S, path, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.raw(x, T, S, LABELS), f)
    assert not torch.equal(model.raw(x, T, S, LABELS), f)  # there are masks


@pytest.mark.parametrize("how", ["autocast", "recompute", "channels_last"])
def test_single_precision_under_every_lever(how: str) -> None:
    model, (x0, noise) = network(time_s=True).eval(), pair()
    x, path = noised(x0, noise).float(), pair_output("edm", x0, noise, T).float()
    f, j = tangent(model, x, T, S, path, LABELS)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(model.raw(x, T, S, LABELS), f)  # it does round
            lowered = tangent(model, x, T, S, path, LABELS)
        assert torch.equal(lowered[0], f) and torch.equal(lowered[1], j)
        return
    if how == "recompute":
        for module in model.modules():
            if hasattr(module, "recompute"):
                module.recompute = True
    else:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    close(tangent(model, x, T, S, path, LABELS)[1], j, 1e-5)


class Attending(nn.Module):
    """Attention by torch's kernel on contiguous inputs: the fused ones have no forward mode."""

    time_s, label_dim = False, 0

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        q = x.flatten(2).unsqueeze(1).contiguous()
        return functional.scaled_dot_product_attention(q, q, q).view_as(x)


def test_fused_attention_is_replaced() -> None:
    model, (x0, noise) = Trajectory(Attending()), pair()
    path = pair_output("edm", x0, noise, T)
    _, j = tangent(model, noised(x0, noise), T, None, path)
    close(j, difference(lambda t: model.raw(noised(x0, noise, t), t)))


class Opaque(nn.Module):
    """A network with a derivative of its own, for the backward pass alone."""

    time_s, label_dim = False, 0

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        out: Tensor = self.Twice.apply(x)
        return out


def test_network_without_forward_mode_is_refused() -> None:
    x0, noise = pair()
    with pytest.raises(UserError, match="Opaque has no forward-mode derivative"):
        tangent(Trajectory(Opaque()), noised(x0, noise), T, None, x0)


def test_network_that_fails_otherwise_says_so() -> None:
    x0, noise = pair()
    with pytest.raises(UserError, match="labels were given"):
        tangent(Trajectory(Attending()), noised(x0, noise), T, None, x0, LABELS)
    with pytest.raises(RuntimeError, match="size"):
        tangent(Trajectory(Attending()), noised(x0, noise), T, None, x0[:, :1])


def test_pair_output_makes_the_pair() -> None:
    """d(c_in x)/d ln t along it is that of x_0 + t ξ, whose x' is t ξ."""
    x0, noise = pair()
    path, c_in = pair_output("edm", x0, noise, T), scalings(T).c_in
    slope = -(T * 0.5 / (T**2 + 0.25)).view(-1, 1, 1, 1) * path
    scaled = difference(lambda t: scalings(t).c_in.view(-1, 1, 1, 1) * noised(x0, noise, t))
    close(slope, scaled, 1e-9)
    assert c_in.shape == T.shape
