"""A toy metric: the distance between the mean features of samples and real images."""

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.blocks import whole
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate


def score_brightness(
    samples: State, reference: State, protocol: Protocol, errors: bool
) -> dict[MetricName, Estimate]:
    """The Euclidean distance of the means."""
    ours, real = whole(samples.moments()), whole(reference.moments())
    gap = float((ours.mean - real.mean).norm())
    return {MetricName("brightness", protocol.features, samples.samples): Estimate(gap)}
