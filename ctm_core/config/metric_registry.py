"""The metrics, one entry each. A metric is its entry here and its module, and nothing else.

The module ``ctm_core/evaluation/metrics/<name>.py`` (or ``module``, where metrics share one) has a
function ``score_<name>(samples, reference, protocol, errors)``. It is given what passes over the
samples and the real images left, by ``needs``, and returns ``{MetricName: Estimate}``; see
:mod:`ctm_core.evaluation.metrics.scoring`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

#: Fewer samples than this are never called FID.
FID_SAMPLES = 50_000

#: Which values are better; "" where none is.
Direction = Literal["lower", "higher", ""]

#: Ranges of values (:class:`Family`).
UNIT, ANY = (0.0, 1.0), (-math.inf, math.inf)

#: ``needs`` of a metric that compares with the teacher's flow instead of scoring samples.
TEACHER = "teacher"


class Family(NamedTuple):
    """The values of one kind, whose names begin alike."""

    display: str
    direction: Direction = "lower"
    with_features: bool = True  #: whether the names contain the feature network
    range: tuple[float, float] = (0.0, math.inf)  #: where values can lie; not those extrapolated


@dataclass(frozen=True)
class Metric:
    """What everything but its own module has to know of a metric."""

    #: The part of a :class:`ctm_core.evaluation.metrics.state.State` that it is computed from:
    #: ``moments``, ``features``, ``probabilities``, ``spatial`` or ``nearest``. ``teacher``: the
    #: teacher's flow. Empty: not a metric that a protocol can ask for.
    needs: str
    families: dict[str, Family]  #: its values, by how their names begin
    module: str = ""  #: in ``ctm_core/evaluation/metrics``; default: the metric's name
    table: str = ""  #: metrics of one table stand together in reports; the others come last
    #: What is wrong with a :class:`ctm_core.config.protocols.Protocol` that asks for it, or None.
    problem: Callable[[Any], str | None] = field(default=lambda protocol: None)


def _fid(protocol: Any) -> str | None:
    why = protocol.too_little_for_fid(protocol.samples)
    return why and f"metrics: {why}"


def _sfid(protocol: Any) -> str | None:
    if protocol.features == "inception":
        return None
    return f"sfid is of Inception's layer mixed_6; {protocol.features} has none"


def _inception_score(protocol: Any) -> str | None:
    if not protocol.features.startswith("dinov2"):
        return None
    return "the inception score needs class probabilities; dinov2 has no classes"


def _too_few(protocol: Any, metric: str) -> str | None:
    k = getattr(protocol.neighbours, metric)
    if k < min(protocol.samples, protocol.neighbours.rows):
        return None
    return f"neighbours.{metric}: the {k}-th neighbour needs more samples than {k}"


def _trajectory(protocol: Any) -> str | None:
    if protocol.seeds == "separate":
        return None
    return "the trajectory error is of one seed's noises: seeds: separate"


def _memorisation(protocol: Any) -> str | None:
    if getattr(protocol.reference, "split", "") == "train":
        return None
    return "memorisation compares with training images: reference: {dataset: NAME}"


#: In the order of the table's columns.
METRICS = {
    "fid": Metric(
        "moments", {"fid": Family("FID", with_features=False)}, "fd", "distances", _fid
    ),
    "fd": Metric("moments", {"fd": Family("FD")}, "fd", "distances"),
    "kid": Metric("features", {"kid": Family("KID", range=ANY)}, table="scores"),
    "sfid": Metric("spatial", {"sfid": Family("sFID")}, "fd", "scores", _sfid),
    "is": Metric(
        "probabilities", {"is": Family("IS", "higher")}, "inception_score", "scores",
        _inception_score,
    ),
    "precision_recall": Metric(
        "features",
        {
            "precision": Family("Precision", "higher", range=UNIT),
            "recall": Family("Recall", "higher", range=UNIT),
        },
        "prdc", "manifolds", lambda protocol: _too_few(protocol, "precision_recall"),
    ),
    "density_coverage": Metric(
        "features",
        {
            "density": Family("Density", "higher"),
            "coverage": Family("Coverage", "higher", range=UNIT),
        },
        "prdc", "manifolds", lambda protocol: _too_few(protocol, "density_coverage"),
    ),
    "trajectory": Metric(
        TEACHER,
        {"trajectory_error": Family("Trajectory error", with_features=False)},
        problem=_trajectory,
    ),
    "likelihood": Metric("", {"bpd": Family("Bits/dim", with_features=False, range=ANY)}),
    "memorisation": Metric(
        "nearest",
        {
            "memorisation": Family("Memorisation", "", with_features=False, range=UNIT),
            "memorisation_ratio": Family("Memorisation ratio", "", with_features=False),
        },
        "nearest",
        problem=_memorisation,
    ),
}  # fmt: skip

#: Every family of values, in the order of the table's columns.
FAMILIES = {
    family: known for metric in METRICS.values() for family, known in metric.families.items()
}
