r"""The protocol behind CTM's published negative log-likelihood (2.43 bits/dim on CIFAR-10).

The released script makes choices that change the number, three of them defects. They are
reproduced here from their description, so that a number of ours can stand beside the paper's on
the paper's terms, and for nothing else:

1. time is warped, :math:`\sigma(t) = (\sigma_\min^{1/\rho} + t\,(\sigma_\max^{1/\rho} -
   \sigma_\min^{1/\rho}))^\rho`, and t runs from 1e-3 to 1;
2. images are the levels :math:`x_0 = v/127.5 - 1` without dequantisation, and the ODE starts at
   :math:`x_0 + \sigma(10^{-3})\,z`, where :math:`\sigma(10^{-3}) = 0.00205`;
3. RK45 with relative and absolute tolerance 1e-3, one Rademacher probe, batches of 100;
4. the law at sigma_max is :math:`N(0, 80^2 I)`;
5. a residual term (:func:`residual`) turns the density at :math:`\sigma(10^{-3})` into a bound on
   the data's own; **defect**: its standard deviation lacks the power :math:`\rho`, 0.413 instead
   of 0.00205;
6. 7 bits are added for levels 2/256 apart; levels 1/127.5 apart call for 6.994;
7. **defect**: the network is left in train mode, so dropout is active along the ODE;
8. **defect**: the images are the training set's, shuffled, and flipped at random.

Together, in bits per dimension, for an image of d elements,

.. math::
   -\frac{\log q_{\sigma(10^{-3})}(x_0 + \sigma(10^{-3}) z) + R}{d \ln 2} + 7.

What the description leaves open is how the wrong deviation 0.413 enters the residual: see
:data:`READINGS`. The script's second estimate, a variational bound with importance-sampled times,
is not reproduced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.solvers import Denoiser
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.evaluation.likelihood.ode import (
    Solution,
    denoise_and_trace,
    normal_log_density,
    solve,
)

START = 1e-3  #: first value of the warped time
TOLERANCE = 1e-3
BATCH_SIZE = 100
SCALE_BITS = 7.0

#: How the residual term is read: which noise level its image has, which deviation its Gaussians,
#: and whether the noise's energy is taken in the mean or as sampled (see :func:`residual`).
#:
#: ``own_noise``
#:     Wrong throughout: x_0 + 0.413 z is denoised at 0.413, and the Gaussians have deviation
#:     0.413. The default: the term is then consistent in itself and inconsistent with the ODE's
#:     start, as described.
#: ``shared_noise``
#:     The image is the ODE's start, and only the Gaussians have deviation 0.413. R is close to
#:     d/2 whatever the model.
#: ``shared_noise_sampled``
#:     The same with the energy as sampled. R is close to 0 whatever the model.
#: ``consistent``
#:     Without the defect, 0.00205 in both places.
#:
#: All agree with the effect of "up to 0.7 bits/dim" that is known of the defect, and differ from
#: each other by up to 0.72.
READINGS = ("own_noise", "shared_noise", "shared_noise_sampled", "consistent")


def warped_sigma(t: float, sigma_min: float, sigma_max: float, rho: float) -> tuple[float, float]:
    """sigma(t) and its derivative for t in [0, 1]."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    base = low + t * (high - low)
    return base**rho, rho * (high - low) * base ** (rho - 1)


def log_density(
    denoiser: Denoiser,
    x: Tensor,
    noise: Tensor,
    probe: Tensor,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    tolerance: float = TOLERANCE,
) -> Solution:
    """log q at sigma(1e-3) of the image with noise added, by points 1 to 4.

    x (B, C, H, W) are the levels v/127.5 - 1, ``noise`` is standard normal and ``probe`` signs. At
    the script's tolerance of 1e-3 the solver's own error can be 0.01 bits/dim and more.
    """
    d = x[0].numel()
    sigma, _ = warped_sigma(START, sigma_min, sigma_max, rho)

    def slope(t: float, image: Tensor) -> tuple[Tensor, Tensor]:
        sigma, speed = warped_sigma(t, sigma_min, sigma_max, rho)
        level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
        denoised, trace = denoise_and_trace(denoiser, image.to(x), level, probe[None])
        factor = speed / sigma
        return (image - denoised.to(image)) * factor, (d - trace.to(image)) * factor

    start = (x + sigma * noise).detach().double().cpu()
    end, integral, evaluations = solve(slope, (START, 1.0), start, tolerance)
    return Solution(normal_log_density(end, sigma_max) + integral, end, evaluations)


def residual(
    denoiser: Denoiser,
    x: Tensor,
    noise: Tensor,
    *,
    level: float,
    deviation: float,
    sampled: bool = False,
) -> Tensor:
    r"""The residual reconstruction term R in nats.

    The density at noise level :math:`\sigma` bounds the data's own, as any encoder and decoder do
    (Song et al. 2021, "Maximum likelihood training of score-based diffusion models"), by

    .. math::
       \log p(x_0) \ge \mathbb E_z \bigl[\log q_\sigma(x_\sigma)
          + \underbrace{\log N(x_0;\ D(x_\sigma, \sigma),\ \varsigma^2 I)
          - \log N(x_\sigma;\ x_0,\ \varsigma^2 I)}_{R} \bigr],
       \qquad x_\sigma = x_0 + \sigma z

    with :math:`\varsigma = \sigma`. Normalisers cancel. In the mean over z the last logarithm is a
    Gaussian's entropy, d/2 whatever its deviation:

    .. math:: R = \frac{e}{2} - \frac{\|x_0 - D(x_0 + \sigma z, \sigma)\|^2}{2 \varsigma^2},
       \qquad e = d \quad\text{or, as sampled,}\quad e = \frac{\sigma^2 \|z\|^2}{\varsigma^2}.

    For small :math:`\sigma` the sampled form scatters less: the denoiser's error is made of the
    same z.

    ``level`` and ``deviation``, :math:`\sigma` and :math:`\varsigma`, are equal but for a
    published defect; ``noise`` is z. R is (B,), float64, on the CPU; in the mean at most d/2 nats,
    that is 0.72 bits/dim.
    """
    with torch.no_grad():
        time = torch.tensor(level, dtype=x.dtype, device=x.device)
        denoised = denoiser(x + level * noise, time)
    squares = (denoised - x).double().cpu().flatten(1).square().sum(1)
    energy = (level / deviation) ** 2 * noise.double().cpu().flatten(1).square().sum(1)
    return ((energy if sampled else x[0].numel()) - squares / deviation**2) / 2


def published_residual(
    denoiser: Denoiser,
    x: Tensor,
    noise: Tensor,
    *,
    reading: str = "own_noise",
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """:func:`residual` with the published script's deviation, by one of :data:`READINGS`."""
    right, _ = warped_sigma(START, sigma_min, sigma_max, rho)
    wrong = right ** (1 / rho)
    return residual(
        denoiser,
        x,
        noise,
        level=wrong if reading == "own_noise" else right,
        deviation=right if reading == "consistent" else wrong,
        sampled=reading == "shared_noise_sampled",
    )


@contextmanager
def dropping_out(model: Trajectory, seed: int, batch: int) -> Iterator[None]:
    """The model in train mode, its dropout seeded before every forward pass.

    Masks are a function of (seed, batch, evaluation), new at every evaluation as in the released
    script. The mode and torch's generators are put back at the end.
    """
    training, count = model.training, 0

    def reseed(*_: object) -> None:
        nonlocal count
        torch.manual_seed(randomness.torch_seed(seed, "likelihood dropout", batch, count))
        count += 1

    hook = model.model.register_forward_pre_hook(reseed)
    try:
        with torch.random.fork_rng():
            model.train()
            yield
    finally:
        hook.remove()
        model.train(training)
