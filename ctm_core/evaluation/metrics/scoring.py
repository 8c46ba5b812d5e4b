"""From states to values: every metric that a protocol lists, as rows of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ctm_core.config.metric_registry import METRICS
from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate

MetricFunction = Callable[[State, State, Protocol, bool], dict[MetricName, Estimate]]


def metric_function(metric: str) -> MetricFunction:
    """``score_<metric>`` of the metric's module.

    It is called with the states of the samples and of the real images, the protocol, and whether
    an expensive standard error is wanted, and returns values by name.
    """
    module = import_module(f"{__package__}.{METRICS[metric].module or metric}")
    function: MetricFunction = getattr(module, f"score_{metric}")
    return function


def scores(
    state: State, reference: State, protocol: Protocol, *, errors: bool = False
) -> list[dict[str, Any]]:
    """Every value of the samples of one state, those of the teacher's flow left out.

    Rows ``{metric, n, value, rank_deficient, standard_error, freedom}``; the last two are None
    where a value has no error of its own. ``errors``: Fréchet distances have one, which takes one
    more distance for each block; wanted where there is one sampling seed.
    """
    return [
        {
            "metric": str(name),
            "n": name.n or state.samples,
            "value": estimate.value,
            "rank_deficient": estimate.rank_deficient,
            "standard_error": estimate.standard_error,
            "freedom": estimate.freedom,
        }
        for metric in protocol.scored
        for name, estimate in metric_function(metric)(state, reference, protocol, errors).items()
    ]
