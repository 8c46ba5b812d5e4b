"""ctm_core.diffusion.sampling: plans, samplers on an exact model, refusals, rounding."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctm_core.config.sampler_traits import sampler_traits, samplers
from ctm_core.diffusion import sampling
from ctm_core.diffusion.samplers.gamma import plan as gamma_jumps
from ctm_core.diffusion.samplers.gamma_paper import plan as gamma_paper_jumps
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.runtime.errors import UserError

VARIANCE = 0.25


class Gaussian:
    """Exact D and G for data N(0, v), counting evaluations."""

    def __init__(self, time_s: bool = True) -> None:
        self.time_s = time_s
        self.calls = 0
        self.labels: list[Tensor | None] = []
        self.dtypes: set[torch.dtype] = set()

    def G(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        self._count(x, y)
        return x * ((VARIANCE + s**2) / (VARIANCE + t**2)).sqrt()

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self._count(x, y)
        return (VARIANCE * x / (VARIANCE + t**2)).to(x.dtype)

    def _count(self, x: Tensor, y: Tensor | None) -> None:
        self.calls += 1
        self.labels.append(y)
        self.dtypes.add(x.dtype)


LATENTS = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(9, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def draw(model: Gaussian, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "sampler": "gamma",
        "nfe": 4,
        "gamma": 0.0,
        "latents": LATENTS,
        "noise": NOISE,
        "clamp": False,
    }
    return sampling.sample(model, **(arguments | changes))


# -- plans ----------------------------------------------------------------------------------------


def test_levels() -> None:
    levels = sampling.sigmas(2)
    assert levels.tolist() == [80.0, pytest.approx(2.5152, abs=1e-4), 0.002]
    with pytest.raises(UserError, match="at least one"):
        sampling.sigmas(0)


@given(n=st.integers(1, 20), gamma=st.floats(0, 1))
def test_released_plan_keeps_the_level(n: int, gamma: float) -> None:
    """s^2 + noise^2 is the next level's square; s never falls below sigma_min."""
    levels = sampling.sigmas(n)
    t, s, noise = gamma_jumps(levels, gamma)
    assert torch.equal(t, levels[:-1])
    torch.testing.assert_close(s**2 + noise**2, levels[1:] ** 2, rtol=1e-9, atol=1e-12)
    assert bool((s >= 0.002 * (1 - 1e-12)).all())
    assert float(s[-1]) == 0.002 and float(noise[-1]) == 0


@given(n=st.integers(1, 20), gamma=st.floats(0, 1))
def test_printed_plan(n: int, gamma: float) -> None:
    levels = sampling.sigmas(n)
    t, s, noise = gamma_paper_jumps(levels, gamma)
    assert torch.equal(t, levels[:-1])
    expected = ((1 - gamma**2) ** 0.5 * levels[1:]).clamp(min=0.002)
    torch.testing.assert_close(s, expected)
    torch.testing.assert_close(noise[:-1], gamma * levels[1:-1])
    assert float(s[-1]) == 0.002 and float(noise[-1]) == 0


def test_plans_at_the_ends() -> None:
    levels = sampling.sigmas(5)
    for plan in (gamma_jumps, gamma_paper_jumps):
        exact, consistency = plan(levels, 0.0), plan(levels, 1.0)
        assert torch.equal(exact.s, levels[1:]) and not exact.noise.any()
        assert consistency.s.tolist() == [0.002] * 5
    # The two forms differ by the floor sigma_min alone.
    fine = torch.tensor([80.0, 5.0, 1.0, 1e-9], dtype=torch.float64)
    ours, paper = gamma_jumps(fine, 0.6), gamma_paper_jumps(fine, 0.6)
    torch.testing.assert_close(ours.s, paper.s, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.noise, paper.noise, rtol=1e-6, atol=1e-9)


def test_return_plan() -> None:
    grid = karras_grid(18)
    t, s, noise = sampling.return_jumps(grid, down=14, up=9)
    assert t.tolist() == [80.0, float(grid[9])] and s.tolist() == [float(grid[14]), 0.002]
    assert float(noise[0]) == pytest.approx(float((grid[9] ** 2 - grid[14] ** 2).sqrt()))
    assert not sampling.return_jumps(grid, 9, 9).noise.any()
    for down, up in ((9, 14), (18, 3), (3, 0)):
        with pytest.raises(UserError, match="two jumps"):
            sampling.return_jumps(grid, down, up)


# -- samplers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "nfe", "gamma"),
    [
        *((s, n, g) for s in ("gamma", "gamma_paper") for n in (1, 2, 5) for g in (0.0, 0.3, 1.0)),
        *(("heun", n, None) for n in (1, 3, 35)),
        *(("euler", n, None) for n in (1, 2, 7)),
    ],
)
def test_nfe_is_the_number_of_evaluations(sampler: str, nfe: int, gamma: float | None) -> None:
    model = Gaussian()
    draw(model, sampler=sampler, nfe=nfe, gamma=gamma)
    assert model.calls == nfe


@pytest.mark.parametrize("nfe", [1, 2, 6])
@pytest.mark.parametrize("sampler", ["gamma", "gamma_paper"])
def test_exact_jumps_compose(sampler: str, nfe: int) -> None:
    """With the exact G, deterministic sampling ends at the same image for every NFE."""
    exact = 80 * LATENTS * ((VARIANCE + 0.002**2) / (VARIANCE + 80**2)) ** 0.5
    torch.testing.assert_close(draw(Gaussian(), sampler=sampler, nfe=nfe), exact)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_exact_jumps_keep_the_variance(gamma: float) -> None:
    """Fed with noise of the right law, the exact G gives variance v + sigma_min^2 at any gamma.

    Samples are linear in latents and noises, so the variance is a sum of squared coefficients.
    """
    n = 4
    units = torch.eye(n, dtype=torch.float64)[:, :, None, None, None]  # latent, then 3 noises
    start = units[0] * (VARIANCE + 80**2) ** 0.5 / 80  # the true marginal at sigma_max
    final = draw(Gaussian(), nfe=n, gamma=gamma, latents=start, noise=units[1:])
    assert float((final**2).sum()) == pytest.approx(VARIANCE + 0.002**2, rel=1e-9)


def test_ode_samplers_converge_to_the_flow() -> None:
    # The flow carried on to 0: the image loses the last sigma_min too.
    exact = 80 * LATENTS * (VARIANCE / (VARIANCE + 80**2)) ** 0.5
    for sampler, coarse, fine, order in (("heun", 79, 159, 2), ("euler", 200, 400, 1)):
        errors = [
            float((draw(Gaussian(), sampler=sampler, nfe=n, gamma=None) - exact).norm())
            for n in (coarse, fine)
        ]
        assert errors[1] < 0.03 * float(exact.norm())
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_noise_as_list_tensor_or_function() -> None:
    expected = draw(Gaussian(), gamma=0.5)
    asked: list[int] = []

    def function(k: int) -> Tensor:
        asked.append(k)
        return NOISE[k]

    assert torch.equal(draw(Gaussian(), gamma=0.5, noise=function), expected)
    assert asked == [0, 1, 2]
    assert torch.equal(draw(Gaussian(), gamma=0.5, noise=list(NOISE)), expected)
    assert not torch.equal(draw(Gaussian(), gamma=0.5, noise=-NOISE), expected)
    with pytest.raises(UserError, match="give noise"):
        draw(Gaussian(), gamma=0.5, noise=None)
    assert torch.equal(draw(Gaussian(), gamma=0.0, noise=None), draw(Gaussian(), gamma=0.0))


def test_dtypes_labels_and_clamp() -> None:
    labels = torch.tensor([3, 1])
    for sampler, gamma in (("gamma", 0.5), ("heun", None), ("euler", None)):
        model = Gaussian()
        latents = LATENTS.float() * 10
        final = draw(
            model, sampler=sampler, nfe=3, gamma=gamma, latents=latents, labels=labels, clamp=True
        )
        assert final.dtype == torch.float32
        assert model.dtypes == {torch.float32}  # the network's, whatever the state's
        assert all(y is labels for y in model.labels)
        assert float(final.abs().max()) == 1.0
        assert not final.requires_grad


def test_state_is_double_along_the_ode() -> None:
    single = LATENTS.float()
    double = draw(Gaussian(), sampler="heun", nfe=35, gamma=None, latents=single.double())
    default = draw(Gaussian(), sampler="heun", nfe=35, gamma=None, latents=single)
    rough = draw(
        Gaussian(), sampler="heun", nfe=35, gamma=None, latents=single, state_dtype=torch.float32
    )
    assert (default - double).norm() < 1e-6 * double.norm()
    assert not torch.equal(default, rough)


def test_one_jump_ignores_gamma() -> None:
    expected = draw(Gaussian(), nfe=1, gamma=0.0, noise=None)
    for gamma in (None, 0.5, 1.0):
        for sampler in ("gamma", "gamma_paper"):
            ours = draw(Gaussian(), sampler=sampler, nfe=1, gamma=gamma, noise=None)
            assert torch.equal(ours, expected)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "ddim"}, "allowed: gamma, heun, euler, gamma_paper"),
        ({"nfe": 0}, "at least one"),
        ({"sampler": "heun", "nfe": 4, "gamma": None}, "must be 1, 3, 5, …, not 4"),
        ({"sampler": "heun", "nfe": 5, "gamma": 0.5}, "no gamma"),
        ({"sampler": "euler", "gamma": 1.0}, "no gamma"),
        ({"gamma": None}, "needs a gamma"),
        ({"gamma": 1.5}, r"lie in \[0, 1\]"),
        ({"gamma": -0.1}, r"lie in \[0, 1\]"),
        ({"end": 0.002, "gamma": 0.5}, "with gamma 1, not gamma 0.5"),
        ({"end": 0.0, "gamma": 0.0}, "with gamma 1, not gamma 0"),
        (
            {"end": 0.0, "sampler": "heun", "nfe": 3, "gamma": None},
            "only jumps to the end .* not sampler heun",
        ),
    ],
)
def test_impossible_combinations(changes: dict[str, Any], words: str) -> None:
    model = Gaussian()
    with pytest.raises(UserError, match=words):
        draw(model, **changes)
    assert model.calls == 0


def test_models_with_limits() -> None:
    with pytest.raises(UserError, match=r"teacher.*heun or euler"):
        draw(Gaussian(time_s=False))
    assert draw(Gaussian(time_s=False), sampler="euler", gamma=None).shape == LATENTS.shape
    draw(Gaussian(), gamma=1.0, end=0.002)
    draw(Gaussian(), gamma=None, nfe=1, end=0.002)


@pytest.mark.parametrize("sampler", samplers(jumps=True))
def test_a_model_that_only_jumps_to_time_zero(sampler: str) -> None:
    """Each jump ends at 0, so the noise after it is that of the next level, exactly."""
    levels = sampling.sigmas(3)
    jumps = sampling.plan(sampler, 3, 1.0, end=0.0)
    assert jumps.s.tolist() == [0.0, 0.0, 0.0]
    assert jumps.t.tolist() == levels[:-1].tolist()
    assert jumps.noise.tolist() == [*levels[1:-1].tolist(), 0.0]


# -- rounding -------------------------------------------------------------------------------------


def test_to_uint8() -> None:
    x = torch.tensor([-2.0, -1.0, -1 + 1.99 / 127.5, 0.0, 0.999, 1.0, 3.0])
    truncated = sampling.to_uint8(x, "truncate")
    assert truncated.dtype == torch.uint8
    assert truncated.tolist() == [0, 0, 1, 127, 254, 255, 255]
    assert sampling.to_uint8(x, "round").tolist() == [0, 0, 2, 128, 255, 255, 255]
    with pytest.raises(UserError, match="truncate, round"):
        sampling.to_uint8(x, "nearest")


@pytest.mark.parametrize(("rounding", "shift"), [("truncate", 0.5), ("round", 0.0)])
def test_levels_survive_rounding(rounding: str, shift: float) -> None:
    """The data map v / 127.5 - 1 is undone; truncation wants the middle of a level."""
    levels = torch.arange(256)
    back = sampling.to_uint8((levels + shift).double().clamp(max=255) / 127.5 - 1, rounding)
    assert torch.equal(back.long(), levels)


# -- times of their own ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", samplers(jumps=True))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_times_of_the_grid_are_the_grid(name: str, gamma: float) -> None:
    times = sampling.sigmas(4)[1:-1].tolist()
    plans = sampling.plan(name, 4, gamma), sampling.plan(name, 4, gamma, times)
    assert all(torch.equal(one, other) for one, other in zip(*plans, strict=True))


def test_two_jumps_through_a_time() -> None:
    """Consistency sampling by hand: to the end, up to the time, to the end again."""
    model = Gaussian()
    t, end, start = (torch.tensor(level, dtype=torch.float64) for level in (0.821, 0.002, 80.0))
    x = model.G(LATENTS * start, start, end)
    expected = model.G(x + (t**2 - end**2).sqrt() * NOISE[0], t, end)
    made = draw(model, nfe=2, gamma=1.0, times=(0.821,))
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=0)
    with pytest.raises(UserError, match="times must decrease and lie between 80 and 0"):
        draw(model, nfe=2, times=(0.001,))


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", samplers())
def test_a_file_has_what_its_traits_promise(name: str) -> None:
    module = importlib.import_module(f"ctm_core.diffusion.samplers.{name}")
    assert hasattr(module, "plan" if sampler_traits(name).jumps else "step")
    plan = sampling.plan(name, 5, 0.5)
    assert plan.t[0] == 80 and plan.noise[-1] == 0 and bool((plan.s < plan.t).all())
