"""The CTM objective and eight optimiser steps, through the code that trains for real."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctm_core import config, ema
from ctm_core.objectives import Batch
from ctm_core.objectives.ctm import CtmObjective
from ctm_core.perceptual import build_distance

from .reference import (
    FLOAT32_SOLVE,
    FLOAT64_STORED64,
    Case,
    compare,
    error,
    load,
    student,
    teacher,
)


class GoldenBatch(Batch):
    """A batch whose noises are the file's."""

    def __init__(self, case: Case, precision: torch.dtype) -> None:
        labels = case.labels(precision)
        super().__init__(case.input("x0", precision), labels, seed=0, step=0)
        self.noises = {
            "noise": case.input("noise", precision),
            "dsm_noise": case.input("dsm_noise", precision),
        }

    def normal(self, stream: str) -> Tensor:
        return self.noises[stream]


class GoldenObjective(CtmObjective):
    """The objective with the file's k, i, j and sigma in place of drawn ones."""

    case: Case

    def draw(self, batch: Batch) -> tuple[int, Tensor, Tensor]:
        return int(self.case["in/heun_steps"]), self.case["in/idx_t"], self.case["in/idx_s"]

    def noise_levels(self, batch: Batch) -> Tensor:
        return self.case["in/dsm_sigma"]


def objective(case: Case, precision: torch.dtype, *, adaptive: bool = True) -> GoldenObjective:
    """Student, EMA and teacher of the file around the l2 distance."""
    section = config.Student.model_validate(
        {
            "grid_points": case.meta["N"],
            "distance": "l2",
            "dsm": {"adaptive": adaptive},
            "training": {"steps": 8, "batch_size": len(case["in/x0"])},
        }
    )
    made = GoldenObjective(
        section=section,
        diffusion=config.Diffusion(),
        student=student(case, precision, "student"),
        target=student(case, precision, "ema").requires_grad_(False),
        teacher=teacher(case, precision).requires_grad_(False),
        distance=build_distance(section.distance),
    )
    made.case = case
    return made


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "plain"])
def test_losses(precision: torch.dtype, adaptive: bool) -> None:
    case = load("ctm_training")
    made = objective(case, precision, adaptive=adaptive)
    terms = made.backward(GoldenBatch(case, precision), 1.0)
    name = "l2_adaptive" if adaptive else "l2_plain"

    def check(ours: float, key: str, reduce: bool = False) -> None:
        golden = case.expected(f"{name}/{key}", precision)
        golden = golden.mean() if reduce else golden
        compare(key, torch.tensor(ours, dtype=torch.float64), golden, precision, solve=True)

    check(terms["ctm"], "consistency_loss", reduce=True)
    check(terms["loss"], "total")
    weight = terms["lambda_dsm"]
    check(weight * terms["dsm"], "denoising_loss", reduce=True)
    if adaptive:
        check(weight, "lambda_dsm")
    else:
        assert weight == 1
    norm = torch.nn.utils.get_total_norm([p.grad for p in made.student.parameters()])
    check(float(norm), "grad_norm")
    assert all(p.grad is None for p in made.target.parameters())
    assert all(p.grad is None for p in made.teacher.parameters())


def test_per_sample_losses(precision: torch.dtype) -> None:
    case = load("ctm_training")
    made = objective(case, precision, adaptive=False)
    rows = []
    distance = made.distance
    made.distance = lambda a, b: rows.append(distance(a, b)) or rows[-1]  # type: ignore[assignment]
    made.backward(GoldenBatch(case, precision), 1.0)
    golden = case.expected("l2_plain/consistency_loss", precision)
    compare("consistency_loss", rows[0], golden, precision, solve=True)


def test_whole_gradient(precision: torch.dtype) -> None:
    case = load("ctm_training")
    made = objective(case, precision)
    made.backward(GoldenBatch(case, precision), 1.0)
    golden = case.weights("grad_l2_adaptive", torch.float32)
    ours = {name: p.grad for name, p in made.student.named_parameters()}
    assert golden.keys() == ours.keys()
    for name, gradient in ours.items():
        assert gradient is not None
        compare(name, gradient, golden[name], precision, solve=True, per_sample=False)


def test_last_layer_gradients() -> None:
    case, precision = load("ctm_training"), torch.float64
    made = objective(case, precision)
    seen = {}
    measure = CtmObjective.dsm_weight

    def spy(ctm: tuple[Tensor, Tensor], dsm: tuple[Tensor, Tensor]) -> Tensor:
        w = made.student.output_weight
        for name, (raw, delta) in {"consistency": ctm, "dsm": dsm}.items():
            (seen[name],) = torch.autograd.grad(raw, w, delta, retain_graph=True)
        return measure(made, ctm, dsm)

    made.dsm_weight = spy  # type: ignore[method-assign]
    made.backward(GoldenBatch(case, precision), 1.0)
    for name, gradient in seen.items():
        golden = case[f"out64/l2_adaptive/grad_{name}_lastlayer"]
        compare(name, gradient, golden, precision, per_sample=False)
        norm = case[f"out64/l2_adaptive/gradnorm_{name}_lastlayer"]
        compare(name, gradient.norm(), norm, precision)


def test_eight_steps(precision: torch.dtype) -> None:
    case = load("ctm_training")
    made = objective(case, precision)
    slow = ema.frozen_copy(made.student)
    start = {n: p.detach().clone() for n, p in made.student.named_parameters()}
    optimizer = torch.optim.RAdam(made.student.parameters(), lr=4e-4, foreach=True)
    log = []
    for step in range(8):
        optimizer.zero_grad()
        terms = made.backward(GoldenBatch(case, precision), 1.0)
        weighted = terms["lambda_dsm"] * terms["dsm"]
        log.append([terms["ctm"], weighted, terms["lambda_dsm"], terms["loss"]])
        optimizer.step()
        ema.update(made.target, made.student, 0.999, step)
        ema.update(slow, made.student, 0.9999, step)
        if step == 0:
            check_weights(case, "param_after_1", made.student, precision)
    golden_log = case.expected("train8/log", precision)
    # Each column by itself: the largest would hide the others.
    for column in range(4):
        ours = torch.tensor(log, dtype=torch.float64)[:, column]
        compare("log", ours, golden_log[:, column], precision, solve=True, per_sample=False)
    check_weights(case, "student_after_8", made.student, precision)
    check_weights(case, "target_after_8", made.target, precision)
    check_weights(case, "ema0.9999_after_8", slow, precision)
    after = dict(made.student.named_parameters())
    order = case.meta["param_names_order"]
    norms = torch.stack([after[name].detach().norm() for name in order])
    allowed = FLOAT32_SOLVE if precision == torch.float32 else FLOAT64_STORED64
    assert error(norms[:, None], case["train8/student_after_8_norms"][:, None]) <= allowed
    if precision == torch.float64:
        deltas = torch.stack([(after[n].detach() - start[n]).norm() for n in order])
        golden = case["train8/student_delta_8_norms"]
        assert error(deltas[:, None], golden[:, None]) <= 1e-6


def check_weights(
    case: Case, group: str, network: torch.nn.Module, precision: torch.dtype
) -> None:
    """Compare every parameter that the file holds for ``group``."""
    state = network.state_dict()
    golden = case.weights(f"train8/{group}", torch.float64)
    assert golden, group
    for name, value in golden.items():
        compare(f"{group} {name}", state[name], value, precision, solve=True, per_sample=False)
