r"""Likelihood of images in bits per dimension, through the denoiser g(x, t, t).

**What density.** The samplers of this project carry :math:`N(0, \sigma_\max^2 I)` along the
probability-flow ODE to :math:`\sigma_\min` and stop there. This defines a density
:math:`q_{\sigma_\min}` of images, and its logarithm at a given image follows by change of
variables (:mod:`ctm_core.evaluation.likelihood.ode`). With an exact denoiser it is
:math:`p_{\sigma_\min} = p_\text{data} \circledast N(0, \sigma_\min^2 I)`.

**Of what.** Images are levels :math:`v \in \{0, …, 255\}`, dequantised as

.. math:: x = \frac{v + u}{127.5} - 1 - \frac1{255}, \qquad u \sim U[0, 1),

so that the middle of a level lies where networks see it, at v/127.5 - 1. By Jensen's inequality

.. math:: -\frac1d \log_2 P(v)
   \le \mathbb E_u\Bigl[ -\frac{\log q_{\sigma_\min}(x)}{d \ln 2} \Bigr] + \log_2 127.5,

where P is the law of levels under q, and the right side is what is reported. Uniform levels score
exactly 8.

**Residual convention.** ``none`` (default): q is a density of images as it stands, evaluated at x
itself. ``reconstruction``: the ODE starts at :math:`x + \sigma_\min z` and the term R of
:func:`.published_protocol.residual` is added, with the deviation :math:`\sigma_\min`
throughout; that bounds the density of a model whose last step decodes :math:`x_{\sigma_\min}` to
:math:`N(D(x_{\sigma_\min}, \sigma_\min), \sigma_\min^2 I)`.

**Prior mismatch.** The ODE starts from :math:`N(0, \sigma_\max^2 I)`, not from data under noise.
Against the exact :math:`p_{\sigma_\max}` this costs the divergence between the two, at most
:math:`\mathbb E\|x\|^2 / (2 \sigma_\max^2 d \ln 2)` bits/dim (convexity): 1.1e-4 for images in
[-1, 1]. The bound for the images at hand is reported, and nothing is subtracted.

``published_protocol`` instead repeats the script behind the paper's number, defects included
(:mod:`ctm_core.evaluation.likelihood.published_protocol`). Numbers of the two protocols are never
to be compared.
"""

from ctm_core.evaluation.likelihood.measurement import measure, write_likelihood
from ctm_core.evaluation.likelihood.protocol import LikelihoodProtocol

__all__ = ["LikelihoodProtocol", "measure", "write_likelihood"]
