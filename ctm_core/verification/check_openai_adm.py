"""CTM's ImageNet network, ADM in OpenAI's form: jumps, solves and samples.

Its embedding has phases of about 1500 radians, so every float32 value is compared as a solve is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.diffusion.sampling import Recorder
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import heun_solve
from ctm_core.verification import case
from ctm_core.verification.builders import student, teacher
from ctm_core.verification.check_ddpmpp import jump_checks
from ctm_core.verification.check_samplers import follow
from ctm_core.verification.golden import DOUBLE, SINGLE, Check, Golden, compare, exact


@case("ctm_student_sony")
def openai_jumps(golden: Golden) -> Iterator[Check]:
    """F, g and G of the student."""
    yield from jump_checks(golden, student(golden), solve=True)


@case("ctm_student_sony")
@torch.no_grad()
def openai_solve(golden: Golden) -> Iterator[Check]:
    """The teacher's solve on the training grid, and CTM's estimate and target from it.

    The teacher is the student without s; live weights and average are the same.
    """
    grid = karras_grid(golden.meta["N"]).to(golden.device)
    i, j = golden["heun/in/idx_t"], golden["heun/in/idx_s"]
    h = int(golden["heun/in/heun_steps"])
    x_0, noise = (golden.tensor(f"heun/in/{key}") for key in ("x0", "noise"))
    y = _labels(golden, "heun", len(x_0))
    times = {"t": grid[i], "u": grid[i + h], "s": grid[j]}
    for name, time in times.items():
        yield _check(golden, name, time)
    t, u, s, end = (time.to(golden.precision) for time in (*times.values(), grid[-1]))

    edm, model = teacher(golden), student(golden)
    x_t = x_0 + t.view(-1, 1, 1, 1) * noise
    x_u = heun_solve(lambda z, r: edm.denoise(z, r, y), x_t, grid, i, h)
    yield _check(golden, "teacher_D_xt", edm.denoise(x_t, t, y))
    yield _check(golden, "x_u", x_u)
    yield _check(golden, "estimate", model.G(model.G(x_t, t, s, y), s, end, y))
    yield _check(golden, "target", model.G(model.G(x_u, u, s, y), s, end, y))


@case("ctm_student_sony")
@torch.no_grad()
def openai_samples(golden: Golden) -> Iterator[Check]:
    """Every sampler variant that the metadata lists: the times of its jumps, and the result."""
    model = student(golden)
    latents, noise = (golden.tensor(f"sample/in/{key}") for key in ("latents", "noise"))
    y = _labels(golden, "sample", len(latents))
    for name, variant in golden.meta["sample"].items():
        recorder = Recorder(model)
        final, unexpected = follow(variant, recorder, latents, noise, y)
        yield golden.check(f"sample/{name}/final", final, solve=True)
        yield exact(f"{name}/noise_used", unexpected, [])
        listed = torch.tensor(variant["t_s"], dtype=DOUBLE)
        for key, column, ours in (("t", 0, recorder.t), ("s", 1, recorder.s)):
            yield compare(f"{name}/{key}", torch.stack(ours), listed[:, column], golden.precision)


def _check(golden: Golden, name: str, ours: Tensor) -> Check:
    single = f"heun/out32/{name}"
    kept = golden.precision == SINGLE and single in golden
    return golden.check(single if kept else f"heun/out64/{name}", ours, solve=True)


def _labels(golden: Golden, block: str, batch: int) -> Tensor | None:
    """Labels of a block of the file, or those of the file's first samples."""
    labels = golden.labels(f"{block}/")
    if labels is None and (labels := golden.labels()) is not None:
        labels = labels[:batch]
    return labels
