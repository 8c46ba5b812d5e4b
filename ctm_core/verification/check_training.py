"""The CTM objective and eight optimiser steps, through the code that trains for real."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_core import config
from ctm_core.training import ema
from ctm_core.training.balance import Call
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import dsm_loss
from ctm_core.training.distance import Distance
from ctm_core.training.distances import build_distance
from ctm_core.training.objectives.ctm import CtmObjective, Draw
from ctm_core.training.terms import floats
from ctm_core.verification import case
from ctm_core.verification.builders import student, teacher
from ctm_core.verification.golden import DOUBLE, Check, Golden, compare, exact

#: Settings of the reference's eight steps.
LEARNING_RATE = 4e-4
TARGET_EMA = 0.999


class GoldenBatch(Batch):
    """The file's images and labels, with the file's noises in place of drawn ones."""

    def __init__(self, golden: Golden) -> None:
        images = golden.input("x0")
        super().__init__(images, golden.labels(), seed=0, step=0)
        self.noises = {name: golden.input(name) for name in ("noise", "dsm_noise")}

    def normal(self, stream: str) -> Tensor:
        """The stored noise."""
        return self.noises[stream]


class GoldenObjective(CtmObjective):
    """The objective with the file's k, i, j and sigma; it records what only tests look at."""

    golden: Golden
    #: Gradients at the last convolution, by loss.
    last_layer: dict[str, Tensor]
    #: d of each sample in the last step.
    distances: Tensor

    def draw(self, batch: Batch) -> Draw:
        """The stored k, i and j."""
        h, i, j = (self.golden[f"in/{key}"] for key in ("heun_steps", "idx_t", "idx_s"))
        return Draw(int(h), i.long(), j.long())

    def noise_levels(self, batch: Batch) -> Tensor:
        """The stored sigma."""
        sigma: Tensor = self.golden["in/dsm_sigma"]
        return sigma

    def at_w(self, call: Call) -> dict[str, Tensor]:
        """Gradients at the last convolution, recorded."""
        gradients = super().at_w(call)
        self.last_layer |= {name.replace("ctm", "consistency"): g for name, g in gradients.items()}
        return gradients


def objective(
    golden: Golden, *, adaptive: bool = True, distance: Distance | None = None
) -> GoldenObjective:
    """Student, EMA and teacher of the file around a distance, by default l2."""
    section = config.Student.model_validate(
        {
            "grid_points": golden.meta["N"],
            "dsm": {"adaptive": adaptive},
            "training": {"steps": 1, "batch_size": len(golden["in/x0"])},
        }
    )
    made = GoldenObjective(
        section=section,
        diffusion=config.Diffusion(),
        student=student(golden, "student"),
        target=student(golden, "ema").requires_grad_(False),
        teacher=teacher(golden).requires_grad_(False),
        distance=distance or build_distance("l2"),
    )
    made.distance.register_forward_hook(lambda _, __, d: setattr(made, "distances", d))
    made.golden = golden
    made.last_layer = {}
    return made


@case("ctm_training")
def l2_plain(golden: Golden) -> Iterator[Check]:
    """Losses and gradient norm with the DSM loss as it is."""
    made = objective(golden, adaptive=False)
    yield from loss_checks("l2_plain", golden, made)


@case("ctm_training")
def l2_adaptive(golden: Golden) -> Iterator[Check]:
    """Losses with the DSM loss weighted adaptively, and the whole gradient."""
    made = objective(golden)
    yield from loss_checks("l2_adaptive", golden, made)
    expected = golden.weights("grad_l2_adaptive")
    ours = {name: p.grad for name, p in made.student.named_parameters()}
    yield exact("parameters with a gradient", sorted(ours), sorted(expected))
    for name, gradient in ours.items():
        ours_or_none = torch.empty(0) if gradient is None else gradient
        yield golden.check(f"grad_l2_adaptive/{name}", ours_or_none, solve=True, per_sample=False)


def step_values(
    golden: Golden, made: GoldenObjective
) -> tuple[Mapping[str, Any], dict[str, Tensor | float]]:
    """The terms of one backward pass, and what the file stores of each, by its names."""
    batch = GoldenBatch(golden)
    terms = floats(made.backward(batch, 1.0))
    with torch.no_grad():
        sigma, noise = golden["in/dsm_sigma"], batch.normal("dsm_noise")
        dsm, _ = dsm_loss(made.student, batch.images, sigma, noise, batch.labels)
    gradients = [p.grad for p in made.student.parameters() if p.grad is not None]
    return terms, {
        "consistency_loss": made.distances,
        "denoising_loss": terms["lambda_dsm"] * dsm,
        "total": terms["loss"],
        "lambda_dsm": terms["lambda_dsm"],
        "grad_norm": torch.nn.utils.get_total_norm(gradients),
    }


def loss_checks(group: str, golden: Golden, made: GoldenObjective) -> Iterator[Check]:
    """Run one backward pass and check the group's tensors that concern CTM and DSM."""
    _, ours = step_values(golden, made)
    if made.section.dsm.adaptive:
        for name, gradient in made.last_layer.items():
            ours[f"grad_{name}_lastlayer"] = gradient
            ours[f"gradnorm_{name}_lastlayer"] = gradient.norm()
    for name, value in ours.items():
        if golden.expects(f"{group}/{name}"):
            single = name.startswith("grad")
            yield golden.check(f"{group}/{name}", value, solve=True, per_sample=not single)
    assert made.teacher is not None
    for name, frozen in {"target": made.target, "teacher": made.teacher}.items():
        grads = [p for p in frozen.parameters() if p.grad is not None]
        yield exact(f"{group}/gradients in the {name}", len(grads), 0)


@case("ctm_training")
def eight_steps(golden: Golden) -> Iterator[Check]:
    """RAdam on one fixed batch: log, weights and averages after it."""
    made = objective(golden)
    learner = made.student
    groups = sorted({key.split("/")[1] for key in golden.keys(r"train8/[^/]+/.+")})
    rates = {m[1]: float(m[1]) for g in groups if (m := re.fullmatch(r"ema(.+)_after_\d+", g))}
    averages = {f"ema{name}": ema.frozen_copy(learner) for name in rates}
    networks = {"student": learner, "param": learner, "target": made.target, **averages}
    start = {name: p.detach().clone() for name, p in learner.named_parameters()}
    optimizer = torch.optim.RAdam(learner.parameters(), lr=LEARNING_RATE, foreach=True)
    expected_log = golden.expected("train8/log")
    log = []
    for step in range(len(expected_log)):
        optimizer.zero_grad()
        terms = floats(made.backward(GoldenBatch(golden), 1.0))
        weighted = terms["lambda_dsm"] * terms["dsm"]
        log.append([terms["ctm"], weighted, terms["lambda_dsm"], terms["loss"]])
        optimizer.step()
        ema.update(made.target, learner, TARGET_EMA, step)
        for name, rate in rates.items():
            ema.update(averages[f"ema{name}"], learner, rate, step)
        for group in groups:
            name, after = group.rsplit("_after_", 1)
            if int(after) == step + 1:
                state = networks[name].state_dict()
                for key in golden.keys(rf"train8/{group}/.+"):
                    parameter = state[key.removeprefix(f"train8/{group}/")]
                    yield golden.check(key, parameter, solve=True, per_sample=False)
    # Each column by itself: the largest would hide the others.
    ours = torch.tensor(log, dtype=DOUBLE)
    for column, name in enumerate(("consistency", "weighted DSM", "lambda_dsm", "total")):
        yield compare(
            f"train8/log {name}",
            ours[:, column],
            expected_log[:, column],
            golden.precision,
            solve=True,
            per_sample=False,
        )
    after_all = dict(learner.named_parameters())
    order = golden.meta["param_names_order"]
    yield exact("param_names_order", sorted(order), sorted(after_all))
    norms = torch.stack([after_all[name].detach().norm() for name in order])
    yield golden.check("train8/student_after_8_norms", norms, solve=True)
    if golden.precision == DOUBLE:  # float32 does not resolve the differences
        deltas = torch.stack([(after_all[n].detach() - start[n]).norm() for n in order])
        yield golden.check("train8/student_delta_8_norms", deltas, solve=True)
