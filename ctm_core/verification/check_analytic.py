"""At the exact solution of a one-pixel mixture: pairs of ECT and CD, and IMM's statistic."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.solvers import euler_step, heun_step
from ctm_core.training.objectives import imm
from ctm_core.verification import case
from ctm_core.verification.exact_mixture import mixture, posterior, rows
from ctm_core.verification.golden import DOUBLE, Check, Golden

#: Of differences of the exact f.
SOLVED = 2e-12
SIGMA_DATA = 0.5
DRAWS = 4096
#: A V-statistic of few draws scatters about its mean: a quarter, at the file's largest M.
SCATTER = 0.5


@case("analytic", (DOUBLE,), on_device=False)
def pairs(golden: Golden) -> Iterator[Check]:
    """The differences of f between t and r, over t - r: on average, and after a solver's step."""
    law, end = mixture(golden), golden["in/s0"]
    x, t = golden["in/x"], golden["in/t"]
    f_t = law.flow(x, t, end)
    x_0, weights = posterior(law, x, t)
    noise = (x[:, None] - x_0) / t.view(-1, 1, 1, 1, 1)
    r = (1 - golden["steps"][:, None]) * t  # (S, B)
    wide = r.flatten().view(-1, 1, 1, 1, 1)
    x_r = x_0.repeat(len(r), 1, 1, 1, 1) + wide * noise.repeat(len(r), 1, 1, 1, 1)
    start, times = rows(x_r, r.flatten())
    f_r = law.flow(start, times, end).view(*r.shape, -1)
    length = t - r
    change = (f_t.view(-1, 1) - f_r) / length[:, :, None]
    found = {
        "ect/conditional_mean_over_dt": (weights * change).sum(2),
        "ect/conditional_rms_over_dt": (weights * change**2).sum(2).sqrt(),
    }
    again, at = x.repeat(len(r), 1, 1, 1), t.repeat(len(r))
    for name, step in (("euler", euler_step), ("heun", heun_step)):
        f_u = law.flow(step(law.denoise, again, at, r.flatten()), r.flatten(), end).view(r.shape)
        found[f"cd/{name}_over_dt"] = (f_t.view(-1) - f_u) / length
    for name, values in found.items():
        # As differences of f, which is of size one and solved for to some 1e-13.
        yield golden.check(name, values, times=length, norm=1.0, double=SOLVED)


@case("analytic", (DOUBLE,), on_device=False)
def moment_matching(golden: Golden) -> Iterator[Check]:
    """IMM's V-statistic of the exact map: 2 (1 - E K(y, y⁻)) / M, by our own draws and the file's.

    Outputs of two images are independent and of one law, so only the diagonal remains.
    """
    law = mixture(golden)
    t, s = golden["imm/t_s"].unbind()
    scale = 1 / imm.coefficients("simple_edm", t, s, SIGMA_DATA).c_out.abs()
    uniform = randomness.uniform(0, "mixture", 0, 0, DRAWS)
    x_0 = law.sample(uniform, randomness.normal(0, "data", 0, 0, DRAWS, law.shape))
    noise = randomness.normal(0, "noise", 0, 0, DRAWS, law.shape)
    sizes = golden["imm/M"].tolist()

    def output(time: Tensor) -> Tensor:
        """f_{s,time} of the noised images, by the exact flow."""
        start, end = (SIGMA_DATA * imm.eta(value) for value in (time, s))
        x = imm.noised(x_0, noise, time.expand(DRAWS), SIGMA_DATA) / (1 - time)
        moved: Tensor = (1 - s) * law.flow(x, start, end)
        return moved

    y = output(t)
    for row, k in zip(golden["imm/mmd2_v_statistic"], golden["imm/k"].tolist(), strict=True):
        target = output(torch.maximum(s, imm.earlier(t, k)))
        pairs = imm.kernel_minus_one(y[:, None], target[:, None], scale.expand(DRAWS))
        expected = -2 * float(pairs.mean())
        for size, stored in zip(sizes, row.tolist(), strict=True):
            name = f"imm/mmd2_v_statistic k {k}, M {size}"
            yield Check(f"{name} (logarithm)", abs(math.log(stored * size / expected)), SCATTER)
            if size <= DRAWS // 64:
                whole = DRAWS // size * size
                a, b = (v[:whole].view(-1, size, *v.shape[1:]) for v in (y, target))
                ours = float(imm.v_statistic(a, b, scale.expand(whole // size)).mean())
                far = abs(math.log(ours * size / expected))
                yield Check(f"{name}, ours (logarithm)", far, SCATTER)
