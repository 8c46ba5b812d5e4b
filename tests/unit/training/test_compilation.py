"""Compiled networks give the same numbers, in a bounded number of versions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from ctm_core import config
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.runtime.errors import UserError
from ctm_core.training import compilation, distances, ema
from ctm_core.training.balance import Rule
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective
from ctm_core.training.rows import SHARES
from ctm_core.training.terms import floats

SIDE, BATCH = 8, 8


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No C++ compiler unless a test asks for it; what is compiled ends with the test."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(*, time_s: bool) -> Trajectory:
    torch.manual_seed(int(time_s))
    model = weight_file.build_model(
        network=config.Network(
            model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.0
        ),
        diffusion=config.Diffusion(),
        resolution=SIDE,
        channels=1,
        label_dim=0,
        time_s=time_s,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def objective(*, compiled: bool, adaptive: bool) -> CtmObjective:
    student = build(time_s=True).train()
    training = {"steps": 1, "batch_size": BATCH, "compile": compiled}
    made = CtmObjective(
        section=config.Student.model_validate(
            {"grid_points": 6, "dsm": {"adaptive": adaptive}, "training": training}
        ),
        diffusion=config.Diffusion(),
        student=student,
        target=ema.frozen_copy(student).train(),
        teacher=build(time_s=False).eval().requires_grad_(False),
        distance=distances.build_distance("l2"),
    )
    if compiled:
        compilation.apply(None, made)
    return made


def batch(step: int) -> Batch:
    images = torch.rand(BATCH, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(step))
    return Batch(2 * images - 1, None, seed=0, step=step)


def step(made: CtmObjective, number: int) -> tuple[dict[str, float], torch.Tensor]:
    made.student.zero_grad()
    terms = floats(made.backward(batch(number), 1.0))
    found = [p.grad.flatten() for p in made.student.parameters() if p.grad is not None]
    return terms, torch.cat(found)


@pytest.mark.parametrize("adaptive", [True, False])
def test_numbers_are_the_same_and_versions_are_few(adaptive: bool) -> None:
    plain, made = (objective(compiled=c, adaptive=adaptive) for c in (False, True))
    # The student has one backward pass, so adaptive weights would pay for it several times.
    assert (made.student in compilation.compiled_networks(made)) is not adaptive
    for number in range(6):
        usual, expected = step(plain, number)
        terms, gradient = step(made, number)
        assert terms == pytest.approx(usual, rel=1e-4)
        assert (gradient - expected).norm() < 1e-4 * expected.norm()
    assert made.evaluations == plain.evaluations
    # The teacher, the target with and without gradient at each row count, the student alike.
    few = 1 + 2 * SHARES + (0 if adaptive else 1 + SHARES)
    assert 2 < counters["stats"]["unique_graphs"] - 1 <= few
    assert not counters["graph_break"]


@pytest.mark.system("g++")
def test_through_the_real_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    x, t = torch.randn(2, 4, SIDE, SIDE), torch.tensor([0.5, 2.0])
    network = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.SiLU())
    expected = network(x * t[:, None, None, None])
    compilation._check_compiler(torch.device("cpu"))
    fast = compilation._compiled(network.forward, "default", torch.device("cpu"))
    torch.testing.assert_close(fast(x * t[:, None, None, None]), expected)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "no_such_backend")
    with pytest.raises(UserError, match=r"^compile: torch.s compiler .* set compile to"):
        objective(compiled=True, adaptive=False)


def test_two_losses_of_one_call_go_back_through_the_compiled_target() -> None:
    results = []
    for compiled in (False, True):
        made = objective(compiled=compiled, adaptive=True)
        made.adversary = Judge()  # type: ignore[assignment]
        results.append(step(made, 0))
    (usual, expected), (terms, gradient) = results
    assert {"gan", "lambda_gan"} <= terms.keys() and terms == pytest.approx(usual, rel=1e-4)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


class Judge:
    """The least of an adversary: it wants dark images."""

    rule = Rule()

    def generator_loss(self, fake: torch.Tensor, batch: Batch) -> torch.Tensor:
        return fake.square().mean()

    def feature_networks(self) -> list[torch.nn.Module]:
        return []
