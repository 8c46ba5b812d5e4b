"""CTM's ImageNet network, ADM in OpenAI's form: jumps, solves and samples.

Its embedding has phases of about 1500 radians, so every float32 value is compared as a solve is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.diffusion.sampling import Recorder
from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import heun_solve
from ctm_core.training.acceleration import channels_last
from ctm_core.verification import case
from ctm_core.verification.builders import student, teacher
from ctm_core.verification.check_ddpmpp import jump_checks
from ctm_core.verification.check_samplers import follow
from ctm_core.verification.golden import DOUBLE, SINGLE, Check, Golden, compare, exact

__all__: list[str] = []


@case("ctm_student_sony")
@torch.no_grad()
def openai_jumps(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """F, g and G of the student, in both memory layouts; a jump from t to t is the identity."""
    model = student(golden, precision)
    yield from jump_checks(golden, precision, model, solve=True)
    x, t, s = (golden.input(key, precision) for key in "xts")
    y = golden.labels(precision)
    last = channels_last(model)
    ours = last.G(x.contiguous(memory_format=torch.channels_last), t, s, y)
    expected = golden.expected("G", precision)
    yield compare("G in channels_last", ours, expected, precision, solve=True)
    if precision == DOUBLE:
        for name, time in (("rescaled_t", t), ("rescaled_s", s)):
            ours = 1000 * scalings(time, model.sigma_data).c_noise
            yield compare(name, ours, golden.expected(name, precision), precision)


@case("ctm_student_sony")
@torch.no_grad()
def openai_solve(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The teacher's solve on the training grid, and CTM's estimate and target from it.

    The teacher is the student without s; live weights and average are the same.
    """
    grid = karras_grid(golden.meta["N"])
    i, j = golden["heun/in/idx_t"], golden["heun/in/idx_s"]
    h = int(golden["heun/in/heun_steps"])
    x_0, noise = (golden[f"heun/in/{key}"].to(precision) for key in ("x0", "noise"))
    y = _labels(golden, "heun", precision, len(x_0))
    times = {"t": grid[i], "u": grid[i + h], "s": grid[j]}
    for name, time in times.items():
        yield _check(golden, name, time, precision)
    t, u, s = (time.to(precision) for time in times.values())
    end = grid[-1].to(precision)

    edm, model = teacher(golden, precision), student(golden, precision)
    x_t = x_0 + t.view(-1, 1, 1, 1) * noise
    x_u = heun_solve(lambda z, r: edm.denoise(z, r, y), x_t, grid, i, h)
    yield _check(golden, "teacher_D_xt", edm.denoise(x_t, t, y), precision)
    yield _check(golden, "x_u", x_u, precision)
    estimate = model.G(model.G(x_t, t, s, y), s, end, y)
    yield _check(golden, "estimate", estimate, precision)
    target = model.G(model.G(x_u, u, s, y), s, end, y)
    yield _check(golden, "target", target, precision)


@case("ctm_student_sony")
@torch.no_grad()
def openai_samples(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """Every sampler variant that the metadata lists: the times of its jumps, and the result."""
    model = student(golden, precision)
    latents, noise = (golden[f"sample/in/{key}"].to(precision) for key in ("latents", "noise"))
    y = _labels(golden, "sample", precision, len(latents))
    for name, variant in golden.meta["sample"].items():
        recorder = Recorder(model)
        used: list[int] = []

        def draw(k: int, used: list[int] = used, noise: Tensor = noise) -> Tensor:
            used.append(k)
            return noise[k]

        final = follow(variant, recorder, latents, draw, y)
        expected = golden.expected(f"sample/{name}/final", precision)
        yield compare(f"{name}/final", final, expected, precision, solve=True)
        yield exact(f"{name}/noise_used", [k for k in used if k >= variant["noise_used"]], [])
        listed = torch.tensor(variant["t_s"], dtype=DOUBLE)
        for key, column, ours in (("t", 0, recorder.t), ("s", 1, recorder.s)):
            yield compare(f"{name}/{key}", torch.stack(ours), listed[:, column], precision)


def _check(golden: Golden, name: str, ours: Tensor, precision: torch.dtype) -> Check:
    single = f"heun/out32/{name}"
    key = single if precision == SINGLE and single in golden else f"heun/out64/{name}"
    return compare(f"heun/{name}", ours, golden[key], precision, solve=True)


def _labels(golden: Golden, block: str, dtype: torch.dtype, batch: int) -> Tensor | None:
    """Labels of a block of the file, or those of the file's first samples."""
    labels = golden.labels(dtype, f"{block}/")
    if labels is None:
        labels = golden.labels(dtype)
        labels = None if labels is None else labels[:batch]
    return labels
