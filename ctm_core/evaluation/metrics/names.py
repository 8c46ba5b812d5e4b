"""Names of metrics: one grammar for evaluation files, tables, figures and claims.

======================================  ==========================================================
name                                    what it is
======================================  ==========================================================
``fd_<features>_<n>``                   Fréchet distance of n samples; ``inf``: extrapolated
``fid``                                 the same by a paper's own protocol, at least 50,000 samples
``kid_``, ``is_``, ``sfid_``            kernel distance, inception score, Fréchet distance of
                                        spatial features, each ``…_<features>_<n>``
``precision_``, ``recall_``,            improved precision and recall, density and coverage, each
``density_``, ``coverage_``             ``…_<features>_<n>``
``trajectory_error_<n>``                distance of jumps from the teacher's ODE, n noises
``bpd_<n>``                             bits per dimension of n images
``memorisation_<n>``                    probability that one of n samples lies nearer to the
                                        training set than a held-out image does; 0.5: none
``memorisation_ratio_<n>``              ratio of the two median distances
======================================  ==========================================================

n counts the samples behind the value. What begins a name is its family, an entry of
:data:`ctm_core.config.metric_registry.FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ctm_core.config.metric_registry import FAMILIES, FID_SAMPLES, METRICS, TEACHER, Direction

INFINITE = "inf"
FEATURES = re.compile("[a-z0-9][a-z0-9_-]*")
RANKS = {family: rank for rank, family in enumerate(FAMILIES)}
#: Families whose values are of samples, and not of a model or its jumps.
OF_SAMPLES = {
    family
    for metric in METRICS.values()
    if metric.needs not in ("", TEACHER)
    for family in metric.families
}


@dataclass(frozen=True)
class MetricName:
    """A name taken apart; ``str()`` puts it together."""

    family: str  #: a key of :data:`ctm_core.config.metric_registry.FAMILIES`
    features: str = ""  #: name of the feature network; empty where there is none
    #: Samples behind a value; None for ``fid`` and for the extrapolated Fréchet distance.
    n: int | None = None

    def __post_init__(self) -> None:
        known = FAMILIES.get(self.family)
        if known is None:
            raise ValueError(f"unknown metric {self.family!r}; known are {', '.join(FAMILIES)}")
        if known.with_features != bool(self.features):
            need = "needs the name of" if known.with_features else "has no"
            raise ValueError(f"the metric {self.family} {need} a feature network")
        if self.features and not FEATURES.fullmatch(self.features):
            raise ValueError(f"the metric {self.family} has no feature network of such a name")
        if self.n is None and self.family not in ("fid", "fd"):
            raise ValueError(f"the metric {self.family} needs its number of samples")
        if self.n is not None and (self.family == "fid" or self.n < 1):
            raise ValueError(f"the metric {self.family} cannot have {self.n} samples in its name")

    @property
    def extrapolated(self) -> bool:
        """Whether this is the Fréchet distance at infinitely many samples."""
        return self.family == "fd" and self.n is None

    def __str__(self) -> str:
        if self.family == "fid":
            return self.family
        count = INFINITE if self.n is None else str(self.n)
        return "_".join(part for part in (self.family, self.features, count) if part)


def parse(name: str) -> MetricName:
    """Take a name apart."""
    fitting = [f for f in FAMILIES if name == f or name.startswith(f + "_")]
    if not fitting:
        raise ValueError(f"{name!r} is not a metric; known are {', '.join(FAMILIES)}")
    family = max(fitting, key=len)
    rest = name.removeprefix(family).removeprefix("_")
    features, _, count = rest.rpartition("_")
    n: int | None = None
    if count.isdecimal():
        n = int(count)
    elif count != (INFINITE if family == "fd" else ""):
        raise ValueError(f"{name!r} is not a metric: it must end in a number of samples")
    metric = MetricName(family, features, n)
    if str(metric) != name:
        raise ValueError(f"{name!r} is not a metric; {str(metric)!r} is")
    return metric


def _known(name: str) -> MetricName | None:
    try:
        return parse(name)
    except ValueError:
        return None


def direction(name: str) -> Direction:
    """Which values are better; "" if none is, or for an unknown metric."""
    known = _known(name)
    return FAMILIES[known.family].direction if known else ""


def ranks_samples(name: str) -> bool:
    """Whether a metric scores samples, and one value can be better than another."""
    known = _known(name)
    return known is not None and known.family in OF_SAMPLES and bool(direction(name))


def display(name: str) -> str:
    """``FD`` for ``fd_classifier_digits_1024``; an unknown name as it is, without underscores.

    sFID is a published quantity as FID is, so with other features or fewer samples it is sFD.
    """
    known = _known(name)
    if known is None:
        return name.replace("_", " ")
    if known.extrapolated:
        return "FD∞"
    published = known.features == "inception" and (known.n or 0) >= FID_SAMPLES
    if known.family == "sfid" and not published:
        return "sFD"
    return FAMILIES[known.family].display


def detail(name: str) -> str:
    """``classifier digits, 1,024 samples`` for ``fd_classifier_digits_1024``; may be empty."""
    known = _known(name)
    if known is None:
        return ""
    parts = [known.features.replace("_", " ")] if known.features else []
    if known.n is not None:
        parts.append(f"{known.n:,} {'images' if known.family == 'bpd' else 'samples'}")
    return ", ".join(parts)


def label(name: str) -> str:
    """A metric as an axis label: ``FD (classifier digits, 1,024 samples)``."""
    behind = detail(name)
    return f"{display(name)} ({behind})" if behind else display(name)


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names by family, Fréchet distances first; unknown ones come last.

    Within a family most samples come first, and the extrapolated value after the measured ones.
    """

    def place(name: str) -> tuple[int, bool, int, str]:
        known = _known(name)
        if known is None:
            return len(FAMILIES), False, 0, name
        return RANKS[known.family], known.extrapolated, -(known.n or 0), known.features

    return sorted(set(names), key=place)
