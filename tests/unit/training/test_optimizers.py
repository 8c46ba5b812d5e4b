"""Optimisers by configuration: each kernel takes the same steps, and state survives a file."""

from __future__ import annotations

import pytest
import torch

from ctm_core.config import Training
from ctm_core.training import optimizers


def run(steps: int, **section: object) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    made = Training.model_validate({"steps": 1, "batch_size": 1} | section)
    optimizer = optimizers.build(made, net.parameters())
    advance(net, optimizer, range(steps))
    return net, optimizer


def advance(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "kernel"),
    [(name, kernel) for name in ("radam", "adam") for kernel in ("loop", "fused")],
)
def test_kernels_take_the_same_steps(name: str, kernel: str) -> None:
    usual, _ = run(10, optimizer=name, learning_rate=0.05)
    other, _ = run(10, optimizer=name, learning_rate=0.05, kernel=kernel)
    for a, b in zip(usual.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_fused_radam_is_radam_in_double_precision() -> None:
    made: list[list[torch.Tensor]] = []
    for kernel in ("loop", "fused"):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2).double()
        section = {"steps": 1, "batch_size": 1, "learning_rate": 0.05, "kernel": kernel}
        optimizer = optimizers.build(Training.model_validate(section), net.parameters())
        for step in range(12):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        made.append([*net.parameters(), *optimizers.flatten(optimizer).values()])
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["radam", "adam"])
def test_state_comes_back_from_flat_tensors(name: str) -> None:
    whole, _ = run(10, optimizer=name)
    half, before = run(6, optimizer=name)
    again = optimizers.build(
        Training.model_validate({"steps": 1, "batch_size": 1, "optimizer": name}),
        half.parameters(),
    )
    optimizers.restore(again, optimizers.flatten(before))
    advance(half, again, range(6, 10))
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_rate_warms_up_stays_and_decays() -> None:
    section = Training.model_validate(
        {"steps": 10, "warmup_steps": 4, "decay_steps": 5, "learning_rate": 0.1}
        | {"batch_size": 8, "ema": [0.5]}
    )
    rates = [optimizers.learning_rate(section, step) for step in range(10)]
    expected = [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02]
    assert rates == pytest.approx(expected)
    plain = section.model_copy(update={"warmup_steps": 0, "decay_steps": 0})
    assert {optimizers.learning_rate(plain, step) for step in range(10)} == {0.1}
