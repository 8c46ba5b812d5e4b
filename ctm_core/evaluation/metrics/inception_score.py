r"""The inception score (Salimans et al., 2016), streamed.

For class probabilities :math:`p_i` of the samples of one split, with mean :math:`\bar p`,

.. math:: \mathrm{IS} = \exp\Bigl(\frac1n \sum_i \sum_k p_{ik} \ln p_{ik}
              - \sum_k \bar p_k \ln \bar p_k\Bigr),

and the score is the mean over splits, ten of them by sample index, as its authors print it. It
depends on the number of splits: a split of n samples and K classes cannot exceed min(n, K).
"""

from __future__ import annotations

import torch

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, of_independent


def inception_score(state: State) -> Estimate:
    """Mean over the splits, with its standard error over them."""
    n = state["scores.n"]
    mean = state["scores.probabilities"] / n[:, None]
    exponent = state["scores.negative_entropy"] / n - torch.xlogy(mean, mean).sum(dim=1)
    return of_independent(exponent.exp())


def score_is(
    samples: State, reference: State, protocol: Protocol, errors: bool
) -> dict[MetricName, Estimate]:
    """The score of the samples; the reference has none."""
    return {MetricName("is", protocol.features, samples.samples): inception_score(samples)}
