"""From states to values: every metric that a protocol lists, as rows of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ctm_core.config.metric_registry import FID_SAMPLES
from ctm_core.evaluation.metrics import density_coverage, precision_recall
from ctm_core.evaluation.metrics.blocks import Blocks
from ctm_core.evaluation.metrics.extrapolation import is_long_enough, series
from ctm_core.evaluation.metrics.frechet import FrechetDistance, frechet_distance
from ctm_core.evaluation.metrics.inception_score import inception_score
from ctm_core.evaluation.metrics.kid import kid, kid_of_subsets, subset_draws
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.nearest import memorisation
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, delete_d

__all__ = ["Settings", "scores"]

#: Blocks below which a standard error is not worth printing.
BLOCKS = 4


@dataclass(frozen=True)
class Settings:
    """How values are computed and named.

    Attributes
    ----------
    features
        Name of the feature network.
    metrics
        Out of :data:`ctm_core.evaluation.metrics.state.METRICS`, but for ``trajectory``.
    published
        Whether the protocol is a paper's own, so that the distance of at least 50,000 samples is
        called FID.
    errors
        Whether Fréchet distances get a standard error: one more distance for each block. Wanted
        where there is one sampling seed.
    precision_k, density_k
        Which neighbour balls reach to.
    kid_subsets, kid_size
        KID by that many random subsets of that size; 0 subsets takes all pairs.
    """

    features: str
    metrics: Collection[str] = ("fd",)
    published: bool = False
    errors: bool = False
    precision_k: int = precision_recall.K
    density_k: int = density_coverage.K
    kid_subsets: int = 0
    kid_size: int = 1000

    def name(self, family: str, n: int | None) -> str:
        """A metric's name."""
        return str(MetricName(family, self.features, n))


def scores(state: State, reference: State, settings: Settings) -> list[dict[str, Any]]:
    """Every value of the samples of one state.

    Returns
    -------
    Rows ``{metric, n, value, rank_deficient, standard_error, freedom}`` in the order of the
    settings' metrics; the last two are None where a value has no error of its own.

    Raises
    ------
    ValueError
        If a metric is unknown, or samples or reference do not hold what it needs.
    """
    rows = []
    for metric in settings.metrics:
        if metric == "trajectory":
            continue
        if metric not in WAYS:
            raise ValueError(f"unknown metric {metric!r}")
        rows += list(WAYS[metric](state, reference, settings))
    return rows


def _row(metric: str, n: int, estimate: Estimate, deficient: bool = False) -> dict[str, Any]:
    return {
        "metric": metric,
        "n": n,
        "value": estimate.value,
        "rank_deficient": deficient,
        "standard_error": estimate.standard_error,
        "freedom": estimate.freedom,
    }


def _distance(
    blocks: Blocks, reference: Moments, errors: bool
) -> tuple[int, Estimate, FrechetDistance]:
    whole = blocks.whole()
    distance = frechet_distance(reference, whole)
    estimate = Estimate(distance.value)
    if errors and len(blocks.parts) >= BLOCKS:
        left = [frechet_distance(reference, part).value for part in blocks.left_out()]
        estimate = delete_d(distance.value, left)
    return whole.n, estimate, distance


def _fd(state: State, reference: State, settings: Settings) -> Iterator[dict[str, Any]]:
    blocks, real = state.moments, reference.moments.whole()
    n, estimate, distance = _distance(blocks, real, settings.errors)
    fid = settings.published and n >= FID_SAMPLES
    yield _row("fid" if fid else settings.name("fd", n), n, estimate, distance.rank_deficient)
    if not is_long_enough(n, real.dim) or len(blocks.parts) % 4:
        return
    found = series(blocks, real)
    for size, value in list(found.values.items())[1:]:
        yield _row(settings.name("fd", size), size, Estimate(value), distance.rank_deficient)
    extrapolated = Estimate(found.extrapolated)
    yield _row(settings.name("fd", None), n, extrapolated, distance.rank_deficient)


def _sfid(state: State, reference: State, settings: Settings) -> Iterator[dict[str, Any]]:
    real = reference.spatial.whole()
    n, estimate, distance = _distance(state.spatial, real, settings.errors)
    yield _row(settings.name("sfid", n), n, estimate, distance.rank_deficient)


def _kid(state: State, reference: State, settings: Settings) -> Iterator[dict[str, Any]]:
    x, y = state.features, reference.features
    if settings.kid_subsets:
        draws = subset_draws(0, len(x), len(y), settings.kid_subsets, settings.kid_size)
        estimate = kid_of_subsets(x, y, draws)
    else:
        estimate = kid(x, y, reference.similarity)
    yield _row(settings.name("kid", len(x)), len(x), estimate)


def _is(state: State, reference: State, settings: Settings) -> Iterator[dict[str, Any]]:
    yield _row(
        settings.name("is", state.samples), state.samples, inception_score(state.probabilities)
    )


def _precision_recall(
    state: State, reference: State, settings: Settings
) -> Iterator[dict[str, Any]]:
    k, x = settings.precision_k, state.features
    both = precision_recall.precision_recall(x, reference.features, k, reference.radii(k))
    for family, estimate in both._asdict().items():
        yield _row(settings.name(family, len(x)), len(x), estimate)


def _density_coverage(
    state: State, reference: State, settings: Settings
) -> Iterator[dict[str, Any]]:
    k, x = settings.density_k, state.features
    both = density_coverage.density_coverage(x, reference.features, k, reference.radii(k))
    for family, estimate in both._asdict().items():
        yield _row(settings.name(family, len(x)), len(x), estimate)


def _memorisation(state: State, reference: State, settings: Settings) -> Iterator[dict[str, Any]]:
    n = len(state.nearest)
    found = memorisation(state.nearest, reference.nearest)
    yield _row(str(MetricName("memorisation", n=n)), n, found.probability)
    if found.ratio is not None:
        yield _row(str(MetricName("memorisation_ratio", n=n)), n, Estimate(found.ratio))


WAYS: dict[str, Callable[[State, State, Settings], Iterator[dict[str, Any]]]] = {
    "fd": _fd,
    "kid": _kid,
    "is": _is,
    "sfid": _sfid,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "memorisation": _memorisation,
}
