"""At the exact solution of a one-pixel mixture: tangents of sCM, MeanFlow and AYF.

The reference took central differences for the derivative, so what vanishes is left with an error
of second order in their step. Along a pair, the derivative differs from that along the flow by the
slope of the map in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ctm_core.diffusion.gaussian import GaussianMixture
from ctm_core.diffusion.scalings import scalings, wide
from ctm_core.diffusion.tangent import pair_output
from ctm_core.training.objectives import ayf, meanflow, scd
from ctm_core.verification import case
from ctm_core.verification.exact_mixture import mixture, posterior
from ctm_core.verification.golden import DOUBLE, Check, Golden

#: Of differences of the exact map, over their step.
SOLVED = 1e-11
#: Of means over a posterior, whose slope in the image is solved for.
MEAN = 1e-8
SIGMA_DATA = 0.5
POWER, EPSILON = 0.75, 1e-3
#: Shares of the tangent in AYF.
SHARES = (1.0, 0.99, 0.0)


def central(
    value: Callable[[Tensor, Tensor], Tensor], at: Tensor, by: Tensor, h: Tensor
) -> Tensor:
    """Central differences, for steps (S,), of a function of pixels and a time, all in one call.

    ``at`` and ``by`` (2, B): the point, pixel and time, and its velocity; returns (S, B).
    """
    offsets = torch.stack([h, -h]).view(-1, 1, 1)
    pixels, times = (at + offsets * by).unbind(1)
    out = value(pixels.reshape(-1, 1, 1, 1), times.flatten()).view(2, len(h), -1)
    return (out[0] - out[1]) / (2 * h[:, None])


def slope_in(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative of a function of single pixels."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(value(x).sum(), x)
    return slope


def output(law: GaussianMixture, x: Tensor, t: Tensor, f: Tensor) -> Tensor:
    """The raw output with which EDM's g is f."""
    c_skip, c_out, _, _ = (wide(c, x) for c in scalings(t, SIGMA_DATA))
    return (f - c_skip * x) / c_out


@case("analytic", (DOUBLE,), on_device=False)
def consistency_tangents(golden: Golden) -> Iterator[Check]:
    """sCM's g along the flow, and its mean over pairs, as it is and normalised."""
    law, end, x, t = mixture(golden), golden["in/s0"], golden["in/x"], golden["in/t"]
    c_in = wide(scalings(t, SIGMA_DATA).c_in, x)
    path = output(law, x, t, law.denoise(x, t))
    rate = t * SIGMA_DATA / (t**2 + SIGMA_DATA**2)  # c s̃
    scaled, turned = c_in * x, -wide(rate, x) * path

    angle = (t / SIGMA_DATA).atan()

    def raw(scaled: Tensor, angle: Tensor) -> Tensor:
        """F in TrigFlow's variables."""
        at = SIGMA_DATA * angle.tan()
        x = scaled / wide(scalings(at, SIGMA_DATA).c_in, scaled)
        return output(law, x, at, law.flow(x, at, end))

    def g(jvp: Tensor, path: Tensor) -> Tensor:
        return scd.slope(still, jvp, path, x, t, 1.0, SIGMA_DATA)

    still, steps = raw(scaled, angle), golden["scm/h"]
    point, velocity = torch.stack([scaled.flatten(), angle]), torch.stack([turned.flatten(), rate])
    jvps = central(raw, point, velocity, steps).view(-1, *x.shape)
    values = torch.stack([g(jvp, path).flatten() for jvp in jvps])
    name = "scm/g_raw_teacher_velocity"
    yield golden.check(name, values, times=steps[:, None], norm=1.0, double=SOLVED)

    nodes, weights = posterior(law, x, t)
    slope = slope_in(lambda scaled: raw(scaled, angle), scaled)
    each = []
    for x_0 in nodes.unbind(1):
        pair = pair_output("edm", x_0, (x - x_0) / wide(t, x), t, SIGMA_DATA)
        jvp = jvps[-1] + slope * -wide(rate, x) * (pair - path)
        tangent = g(jvp, pair)
        normalised = scd.normalised(tangent, "released")
        each.append(torch.stack([tangent, normalised]).flatten(1))
    raws, normals = torch.stack(each, 2)
    yield golden.check("scm/sct_mean_g_raw", (weights * raws).sum(1), norm=1.0, double=MEAN)
    rms = (weights * raws**2).sum(1).sqrt()
    mean = (weights * normals).sum(1)
    # The reference's slope in the image is a difference too.
    coarse = 10 * float(steps[-1]) ** 2
    yield golden.check("scm/sct_rms_g_raw", rms, norm=1.0, double=coarse)
    yield golden.check("scm/sct_mean_g_normalised", mean, norm=1.0, double=coarse)


@case("analytic", (DOUBLE,), on_device=False)
def average_velocities(golden: Golden) -> Iterator[Check]:
    """u against MeanFlow's target and AYF's tangent along the flow, and MeanFlow's over pairs."""
    law, x, t = mixture(golden), golden["in/x"], golden["in/t"]
    linear_t, linear_r = meanflow.linear(t), golden["meanflow/linear_r"]
    yield golden.check("meanflow/linear_t", linear_t)
    gap, z = wide(linear_t - linear_r, x), x * wide(1 - linear_t, x)

    def average(z: Tensor, at: Tensor) -> Tensor:
        """u(z, t, r) = (z - g) / t, by our coefficients."""
        end = (linear_r / (1 - linear_r)).repeat(len(at) // len(linear_r))
        sigma = at / (1 - at)
        x = z / wide(1 - at, z)
        ratio = wide(end / sigma, x)
        g = (law.flow(x, sigma, end) - ratio * x) / (1 - ratio)
        of = meanflow.velocity("edm", sigma, x, SIGMA_DATA)
        return of.of(output(law, x, sigma, g), z)

    of = meanflow.velocity("edm", t, x, SIGMA_DATA)
    u, v = average(z, linear_t), of.of(output(law, x, t, law.denoise(x, t)), z)
    steps = golden["meanflow/h"]
    point = torch.stack([z.flatten(), linear_t])
    velocity = torch.stack([v.flatten(), torch.ones_like(t)])
    slopes = central(average, point, velocity, steps).view(-1, *x.shape)
    values = torch.stack([-ayf.tangent_of(u, v, gap * slope, 1.0).flatten() for slope in slopes])
    name = "meanflow/u_minus_target_marginal_velocity"
    yield golden.check(name, values, times=steps[:, None], norm=1.0, double=SOLVED)
    tangents = [ayf.tangent_of(u, v, gap * slopes[-1], share).flatten() for share in SHARES]
    once = steps[-1]
    name = "ayf/tangent_r1_r0.99_r0"
    yield golden.check(name, torch.stack(tangents), times=once, norm=1.0, double=SOLVED)

    nodes, weights = posterior(law, x, t)
    in_z, each = slope_in(lambda z: average(z, linear_t), z), []
    for x_0 in nodes.unbind(1):
        pair = pair_output("edm", x_0, (x - x_0) / wide(t, x), t, SIGMA_DATA)
        own = of.of(pair, z)
        slope = slopes[-1] + in_z * (own - v)
        each.append(-ayf.tangent_of(u, own, gap * slope, 1.0).flatten())
    errors = torch.stack(each, 1)
    squares = errors**2
    # The gradient of the loss in u, half of it.
    pulls = errors * meanflow.adaptive(squares, POWER, EPSILON) / squares
    found = {"mean": errors, "mean_weighted_p0.75": pulls, "second_moment": squares}
    for key, value in found.items():
        mean = (weights * value).sum(1)
        yield golden.check(f"meanflow/conditional_{key}", mean, norm=1.0, double=MEAN)
