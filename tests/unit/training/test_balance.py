"""Adaptive weights against separate backward passes through a small network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctm_core.training import balance
from ctm_core.training.balance import Call, Loss, Rule


class Net(nn.Module):
    """Two layers; the second one's weight is w."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 3, 3, padding=1).double()
        self.last = nn.Conv2d(3, 1, 3, padding=1).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    one, two = (torch.randn(4, 1, 5, 5, dtype=torch.double, generator=generator) for _ in "ab")
    return one, two


def test_the_gradient_is_that_of_separate_passes() -> None:
    """Three losses, two of them through one call, against the textbook form."""
    ours, plain = Net(), Net()
    x, z = inputs()
    rules = {"b": Rule(1.5, low=0.01, high=10), "c": Rule()}

    raw = ours(x)
    losses = (
        Loss.of("a", raw.square().mean(), raw, keep=True),
        Loss.of("b", raw.tanh().sum(), raw, rules["b"]),
    )
    first = Call(raw, losses)
    found = {loss.name: balance.at_weight(first, loss, ours.last.weight) for loss in losses}
    weights = balance.weigh({"b": rules["b"]}, found, found["a"])
    balance.pull_back(first, weights, 0.5)
    raw = ours(z)
    second = Call(raw, (Loss.of("c", (raw - 1).abs().mean(), raw, rules["c"]),))
    (loss,) = second.losses
    at_c = balance.at_weight(second, loss, ours.last.weight)
    weights |= balance.weigh({"c": rules["c"]}, {"c": at_c}, found["a"])
    balance.pull_back(second, weights, 0.5)

    of_x, of_z = plain(x), plain(z)
    terms = {
        "a": of_x.square().mean(),
        "b": of_x.tanh().sum(),
        "c": (of_z - 1).abs().mean(),
    }
    norms = {
        name: torch.autograd.grad(term, plain.last.weight, retain_graph=True)[0].norm()
        for name, term in terms.items()
    }
    by_hand = {
        "b": 1.5 * float((norms["a"] / (norms["b"] + 1e-4)).clamp(0.01, 10)),
        "c": float((norms["a"] / (norms["c"] + 1e-4)).clamp(0, 1e4)),
    }
    (0.5 * (terms["a"] + by_hand["b"] * terms["b"] + by_hand["c"] * terms["c"])).backward()
    assert {name: float(weight) for name, weight in weights.items()} == pytest.approx(by_hand)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_a_ratio_of_output_gradients_is_another_weight() -> None:
    net, (x, z) = Net(), inputs()
    calls = []
    for image in (x, z):
        raw = net(image)
        calls.append(Call(raw, (Loss.of("l", (raw * (1 + raw)).mean(), raw),)))
    at_w = [balance.at_weight(call, call.losses[0], net.last.weight) for call in calls]
    lam = balance.adaptive_weight(at_w[0], at_w[1])
    of_outputs = balance.adaptive_weight(calls[0].losses[0].delta, calls[1].losses[0].delta)
    assert abs(float(lam) - float(of_outputs)) > 0.01


def test_a_loss_may_reach_parameters_beside_the_network() -> None:
    net, (x, z) = Net(), inputs()
    beside = torch.ones((), dtype=x.dtype, requires_grad=True)
    for image in (x, z):
        raw = net(image)
        value = (beside * raw.square()).mean()
        balance.pull_back(Call(raw, (Loss.of("l", value, raw, beside=[beside]),)), {"l": 3}, 0.5)
    ours = [beside.grad, *(p.grad for p in net.parameters())]
    beside.grad = None
    net.zero_grad()
    (1.5 * beside * (net(x).square().mean() + net(z).square().mean())).backward()
    for mine, theirs in zip(ours, [beside.grad, *(p.grad for p in net.parameters())], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_weights_that_are_not_adaptive_need_no_gradient() -> None:
    assert balance.weigh({"gan": Rule(0.3, adaptive=False)}, {}, None) == {"gan": 0.3}


def test_clips() -> None:
    big, small = torch.tensor([1e9]), torch.tensor([1e-9])
    weights = balance.weigh({"gan": Rule(2.0, low=0.01, high=10)}, {"gan": small}, big)
    assert float(weights["gan"]) == 20.0
    weights = balance.weigh({"gan": Rule(2.0, low=0.01, high=10)}, {"gan": big}, small)
    assert float(weights["gan"]) == pytest.approx(0.02)
    weights = balance.weigh({"dsm": Rule()}, {"dsm": torch.zeros(1)}, big)
    assert float(weights["dsm"]) == 1e4


def test_norms_are_taken_in_float32_at_least() -> None:
    net = Net().float()
    with torch.autocast("cpu", torch.bfloat16):
        raw = net(torch.randn(2, 1, 5, 5))
    call = Call(raw, (Loss.of("l", raw.float().square().mean(), raw),))
    assert balance.at_weight(call, call.losses[0], net.last.weight).dtype == torch.float32
