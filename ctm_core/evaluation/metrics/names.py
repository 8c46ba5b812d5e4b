r"""Names of metrics: one grammar for evaluation files, tables, figures and claims.

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
                                        training set than a held-out image does; 0.5 is none
``memorisation_ratio_<n>``              ratio of the two median distances
======================================  ==========================================================

n counts the samples behind the value. A metric has a direction, ``lower`` or ``higher``, if one
value can be better than another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ctm_core.config.metric_registry import FAMILIES, FID_SAMPLES, Direction

__all__ = [
    "MetricName",
    "detail",
    "direction",
    "display",
    "in_order",
    "is_distance",
    "label",
    "parse",
    "sort_key",
]

INFINITE = "inf"


RANKS = {family: rank for rank, family in enumerate(FAMILIES)}


@dataclass(frozen=True)
class MetricName:
    """A name taken apart; ``str()`` puts it together.

    Attributes
    ----------
    family
        A key of :data:`ctm_core.config.metric_registry.FAMILIES`.
    features
        Name of the feature network; empty where there is none.
    n
        Samples behind a value; None for ``fid`` and for the extrapolated Fréchet distance.

    Raises
    ------
    ValueError
        If the family is unknown, or lacks or has what it must not.
    """

    family: str
    features: str = ""
    n: int | None = None

    def __post_init__(self) -> None:
        known = FAMILIES.get(self.family)
        if known is None:
            raise ValueError(f"unknown metric {self.family!r}; known are {', '.join(FAMILIES)}")
        if known.with_features != bool(self.features):
            need = "needs the name of" if known.with_features else "has no"
            raise ValueError(f"the metric {self.family} {need} a feature network")
        if self.n is None and self.family not in ("fid", "fd"):
            raise ValueError(f"the metric {self.family} needs its number of samples")
        if self.n is not None and (self.family == "fid" or self.n < 1):
            raise ValueError(f"the metric {self.family} cannot have {self.n} samples in its name")

    @property
    def extrapolated(self) -> bool:
        """Whether this is the Fréchet distance at infinitely many samples."""
        return self.family == "fd" and self.n is None

    @property
    def direction(self) -> Direction:
        """Which values are better: ``lower``, ``higher``, or "" where none is."""
        return FAMILIES[self.family].direction

    @property
    def display(self) -> str:
        """The metric's name for readers.

        sFID is a published quantity as FID is, so other features and fewer samples are called sFD.
        """
        if self.extrapolated:
            return "FD∞"
        published = self.features == "inception" and (self.n or 0) >= FID_SAMPLES
        if self.family == "sfid" and not published:
            return "sFD"
        return FAMILIES[self.family].display

    @property
    def detail(self) -> str:
        """What stands behind the name for readers: features and samples; may be empty."""
        parts = [self.features.replace("_", " ")] if self.features else []
        if self.n is not None:
            parts.append(f"{self.n:,} {'images' if self.family == 'bpd' else 'samples'}")
        return ", ".join(parts)

    def sort_key(self) -> tuple[int, bool, int, str]:
        """By family, most samples first, the extrapolated value after the measured ones."""
        return RANKS[self.family], self.extrapolated, -(self.n or 0), self.features

    def __str__(self) -> str:
        if self.family == "fid":
            return self.family
        count = INFINITE if self.n is None else str(self.n)
        return "_".join(part for part in (self.family, self.features, count) if part)


def parse(name: str) -> MetricName:
    """Take a name apart.

    Raises
    ------
    ValueError
        If it does not follow the grammar.
    """
    fitting = [f for f in FAMILIES if name == f or name.startswith(f + "_")]
    if not fitting:
        raise ValueError(f"{name!r} is no metric; known are {', '.join(FAMILIES)}")
    family = max(fitting, key=len)
    rest = name.removeprefix(family).removeprefix("_")
    features, _, count = rest.rpartition("_")
    n: int | None = None
    if count.isdecimal():
        n = int(count)
    elif count != (INFINITE if family == "fd" else ""):
        raise ValueError(f"{name!r} is no metric: it must end in a number of samples")
    found = MetricName(family, features, n)
    if str(found) != name:
        raise ValueError(f"{name!r} is no metric; {str(found)!r} is")
    return found


def _known(name: str) -> MetricName | None:
    try:
        return parse(name)
    except ValueError:
        return None


def direction(name: str) -> Direction:
    """Which values of a metric are better; "" if none is, or nobody knows the metric."""
    known = _known(name)
    return known.direction if known else ""


def is_distance(name: str) -> bool:
    """Whether a metric is the Fréchet distance itself: ``fid`` or ``fd_<features>_<n>``."""
    known = _known(name)
    return known is not None and known.family in ("fid", "fd")


def display(name: str) -> str:
    """``FD`` for ``fd_classifier_digits_1024``; an unknown name as it is, without underscores."""
    known = _known(name)
    return known.display if known else name.replace("_", " ")


def detail(name: str) -> str:
    """``classifier digits, 1,024 samples`` for ``fd_classifier_digits_1024``; may be empty."""
    known = _known(name)
    return known.detail if known else ""


def label(name: str) -> str:
    """A metric as an axis says it: ``FD (classifier digits, 1,024 samples)``."""
    behind = detail(name)
    return f"{display(name)} ({behind})" if behind else display(name)


def sort_key(name: str) -> tuple[int, bool, int, str]:
    """Sort key of metric names; unknown ones come last."""
    known = _known(name)
    return known.sort_key() if known else (len(FAMILIES), False, 0, name)


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names: Fréchet distances first, of most samples first, then family by family."""
    return sorted(set(names), key=sort_key)
