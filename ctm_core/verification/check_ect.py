"""Easy consistency tuning: times of a pair, its loss and gradient, three steps, samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.diffusion import sampling, schedule
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training import ema
from ctm_core.training.objectives import ect
from ctm_core.verification import builders, case
from ctm_core.verification.golden import (
    DOUBLE,
    FLOAT32_CALL,
    FLOAT32_SOLVE,
    Check,
    Golden,
)
from ctm_core.verification.step_values import gradient_checks, three_steps

#: The network of train3, and of the laws of t: mean and deviation of ln t.
TRAIN_STAGE, TRAIN_EMA = 4, 0.9993
LAWS = {"cifar": (-1.1, 2.0), "imagenet": (-0.8, 1.6)}
SIGMA_MAX = 80.0


class Step(NamedTuple):
    """The choices that a case's name holds: ``loss_q2_c0_stage3``, ``loss_q2_const_stage2``."""

    q: float
    c: float
    k: float
    stage: int
    weight: str

    @classmethod
    def named(cls, name: str) -> Step | None:
        """Of a case's name; None if it is none of a loss."""
        parts = re.fullmatch(r"(loss|imgnet)_q([\d.]+)_(const|c([\de.-]+))_stage(\d+)", name)
        if parts is None:
            return None
        kind, q, _, c, stage = parts.groups()
        weight = "karras" if kind == "imgnet" else "step"
        return cls(float(q), float(c or 0), 0.0 if c is None else 8.0, int(stage), weight)

    def earlier(self, t: Tensor) -> Tensor:
        """r of each t."""
        return ect.earlier_time(t, ect.ratio(self.stage, self.q, 1.0), k=self.k, b=1.0)


def loss_of(
    golden: Golden, model: Trajectory, step: Step, t: Tensor, r: Tensor
) -> tuple[ect.Pair, Tensor]:
    """The pair of a file's images at some times, and the loss of each sample."""
    images, noise = golden.input("x0"), golden.input("noise")
    times = t.to(images), r.to(images)
    made = ect.pair(model, images, noise, times, golden.labels(), step.c)
    weight = ect.pair_weight(step.weight, *times, model.sigma_data)
    return made, weight * made.distance


def loss_norms(golden: Golden, made: ect.Pair, loss: Tensor) -> Tensor | None:
    """What the error of each sample's loss is relative to: in float64 the loss itself.

    Where both ends nearly agree, float32 resolves their difference as far as it resolves them.
    """
    if golden.precision == DOUBLE:
        return None
    size = made.estimate.flatten(1).norm(dim=1) * loss / made.distance
    norms: Tensor = loss + size * FLOAT32_CALL / FLOAT32_SOLVE
    return norms


@case("ect")
def losses(golden: Golden) -> Iterator[Check]:
    """Each case: t, r, both outputs, loss and gradient."""
    model = builders.denoiser(golden).train()
    names = dict.fromkeys(key.split("/")[1] for key in golden.keys(r"out64/[^/]+/loss"))
    for name in names:
        step = Step.named(name)
        assert step is not None, f"{name} says nothing that is known of its loss"
        t = golden["in/t"]
        r = step.earlier(t)
        made, loss = loss_of(golden, model, step, t, r)
        yield golden.check(f"{name}/t", t)
        yield golden.check(f"{name}/r", r, solve=True)
        yield golden.check(f"{name}/D_t", made.estimate, solve=True)
        yield golden.check(f"{name}/D_r", made.target, solve=True)
        norms = loss_norms(golden, made, loss)
        whole = None if norms is None else norms.mean()
        yield golden.check(f"{name}/loss", loss, solve=True, norm=norms)
        yield golden.check(f"{name}/mean", loss.mean(), solve=True, norm=whole)
        model.zero_grad()
        torch.autograd.backward(loss.mean())
        yield from gradient_checks(golden, name, model)


@case("ect")
def training(golden: Golden) -> Iterator[Check]:
    """Three steps of RAdam, and the average."""
    model = builders.denoiser(golden).train()
    step = Step(2.0, 0.0, 8.0, TRAIN_STAGE, "step")
    t = golden["in/t"]

    def backward() -> Tensor:
        loss = loss_of(golden, model, step, t, step.earlier(t))[1].mean()
        torch.autograd.backward(loss)
        return loss.detach()

    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-4)
    average = (ema.frozen_copy(model), TRAIN_EMA)
    yield from three_steps(golden, model, optimizer, backward, average)


def sampled(golden: Golden, model: Trajectory) -> Iterator[Check]:
    """``sample/n2_0.821`` and its like: consistency sampling that ends at time 0."""
    latents = golden.input("latents")
    labels = golden.labels()
    for name in dict.fromkeys(key.split("/")[2] for key in golden.keys(r"out64/sample/.+/final")):
        times = tuple(float(number) for number in name.split("_")[1:])
        made = sampling.sample(
            model,
            sampler="gamma",
            nfe=1 + len(times),
            gamma=1.0,
            times=times,
            latents=latents,
            noise=golden.input("sample_noise"),
            labels=None if labels is None else labels[: len(latents)],
            sigma_max=SIGMA_MAX,
            clamp=False,
            end=model.end,
            state_dtype=DOUBLE,
        )
        yield golden.check(f"sample/{name}/final", made, solve=True)


def evaluated(golden: Golden) -> Trajectory:
    """The network as a model of ECT, whose output is shifted in eval mode."""
    plain = builders.denoiser(golden)
    return Trajectory(plain.model, plain.sigma_data, inner="ect", end=0.0)


@case("ect")
def samples(golden: Golden) -> Iterator[Check]:
    """The map in either mode, and samples in eval mode."""
    model, t = evaluated(golden), golden["in/precond_sigma"]
    x = ect.noised(golden.input("x0"), t.to(golden.precision), golden.input("noise"))
    yield golden.check("precond/train", model.train().g(x, t, None, golden.labels()))
    yield golden.check("precond/eval", model.eval().g(x, t, None, golden.labels()))
    yield from sampled(golden, model)


@case("ect", (DOUBLE,), on_device=False)
def times(golden: Golden) -> Iterator[Check]:
    """r of a grid of t at every stage, and the laws of t."""
    t = golden["schedule/t"]
    for key in golden.keys(r"schedule/q[\d.]+/(sigmoid|const)/r"):
        _, q, mapping, _ = key.split("/")
        expected = golden[key]
        ratios = [ect.ratio(stage, float(q[1:]), 1.0) for stage in range(len(expected))]
        k = 8.0 if mapping == "sigmoid" else 0.0
        r = torch.stack([ect.earlier_time(t, ratio, k=k, b=1.0) for ratio in ratios])
        yield golden.check(key, r)
        name = f"schedule/{q}/{mapping}/ratio"
        yield golden.check(name, torch.tensor(ratios, dtype=DOUBLE))
    for name, law in LAWS.items():
        yield golden.check(f"time/{name}_t", schedule.lognormal_sigma(golden["time/q"], *law))
