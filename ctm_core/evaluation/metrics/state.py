"""What one pass over images leaves for the metrics: of samples, and of the reference.

How evaluation uses it::

    state = State(protocol.samples, metrics, blocks=4)        # one (cell, sampling seed, protocol)
    for images in batches:                                    # in order of sample index
        state.update(Outputs(features, probabilities, spatial, nearest))
    save_tensors(path, state.tensors(), metadata)             # the cell's file
    state = State.from_tensors(load_tensors(path)[0])
    pooled = state.merge(state_of_the_next_seed)              # protocols that pool their seeds
    rows = scores(state, reference, Settings(features, metrics))  # of .scoring

A reference is a state too: :meth:`State.reference`, with :meth:`State.add_nearest` for the
held-out images, or :meth:`State.of_moments` where a file gives nothing but mean and covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch

from ctm_core.evaluation.metrics.blocks import Blocks
from ctm_core.evaluation.metrics.inception_score import InceptionSums
from ctm_core.evaluation.metrics.kid import self_similarity
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.neighbours import radii

__all__ = ["METRICS", "Outputs", "State", "needs"]

T = TypeVar("T")

#: Names of a protocol's ``metrics``. ``trajectory`` needs no samples, hence no state.
METRICS = (
    "fd",
    "kid",
    "is",
    "sfid",
    "precision_recall",
    "density_coverage",
    "trajectory",
    "memorisation",
)
#: What the metrics need of a state, by the names of :class:`Outputs`.
NEEDS = {
    "fd": "moments",
    "kid": "features",
    "is": "probabilities",
    "sfid": "spatial",
    "precision_recall": "features",
    "density_coverage": "features",
    "memorisation": "nearest",
}
SPLITS = 10


def needs(metrics: Collection[str]) -> frozenset[str]:
    """What a list of metrics needs: of ``moments``, ``features``, ``probabilities``, ….

    Raises
    ------
    ValueError
        If a metric is unknown.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known are {', '.join(METRICS)}")
    return frozenset(NEEDS[metric] for metric in metrics if metric in NEEDS)


@dataclass(frozen=True)
class Outputs:
    """What the networks give for one batch.

    Attributes
    ----------
    features
        float32 (rows, D).
    probabilities
        Class probabilities (rows, K), for the inception score.
    spatial
        Flat spatial features (rows, S), for sFID.
    nearest
        float64 (rows,): :func:`ctm_core.evaluation.metrics.nearest.nearest_distances`.
    """

    features: torch.Tensor
    probabilities: torch.Tensor | None = None
    spatial: torch.Tensor | None = None
    nearest: torch.Tensor | None = None


class State:
    """Moments in blocks of sample index, sums, and features where a metric needs them.

    Parameters
    ----------
    samples
        How many there will be; blocks and splits are parts of this number.
    metrics
        Names out of :data:`METRICS`; they decide what is held.
    blocks
        Of the moments: a multiple of 4 for the extrapolated distance, more for a better standard
        error, 1 for a reference.
    keep
        Features of the first ``keep`` samples are held, where any are; None holds all.
    """

    def __init__(
        self, samples: int, metrics: Collection[str], *, blocks: int = 4, keep: int | None = None
    ) -> None:
        self.needs = needs(metrics)
        self.samples = samples
        self.seen = 0
        self.blocks = min(blocks, samples)
        self.keep = samples if keep is None else min(keep, samples)
        self._moments: Blocks | None = None
        self._spatial: Blocks | None = None
        self._scores: InceptionSums | None = None
        self._features: list[torch.Tensor] = []
        self._nearest: list[torch.Tensor] = []

    @classmethod
    def reference(
        cls, samples: int, metrics: Collection[str], *, keep: int | None = None
    ) -> State:
        """A state for real images: one block, and nothing that is wanted of samples alone.

        Distances of held-out images to the training images come by :meth:`add_nearest`.
        """
        state = cls(samples, metrics, blocks=1, keep=keep)
        state.needs -= {"probabilities", "nearest"}
        return state

    @classmethod
    def of_moments(
        cls,
        moments: Moments,
        spatial: Moments | None = None,
        features: torch.Tensor | None = None,
    ) -> State:
        """A reference of known mean and covariance, and perhaps features of a few images."""
        state = cls(moments.n, ["fd"], blocks=1)
        state._moments = Blocks((moments,))
        state._spatial = None if spatial is None else Blocks((spatial,))
        if features is not None:
            state._features, state.keep = [features], len(features)
        state.seen = moments.n
        return state

    # -- filling --------------------------------------------------------------------------------

    def update(self, outputs: Outputs) -> None:
        """Take in the next batch, in order of sample index.

        Raises
        ------
        ValueError
            If a metric's part is missing, parts differ in rows, features are not finite, or there
            are more samples than announced.
        """
        rows, start = len(outputs.features), self.seen
        given = {name: getattr(outputs, name) for name in ("probabilities", "spatial", "nearest")}
        for name, part in given.items():
            if name in self.needs and part is None:
                raise ValueError(f"a metric needs {name}, which the batch does not bring")
            if part is not None and len(part) != rows:
                raise ValueError(f"{len(part)} rows of {name} for {rows} rows of features")
        if start + rows > self.samples:
            raise ValueError(f"more than the {self.samples} samples announced")
        self._moments = self._add(self._moments, outputs.features)
        if "spatial" in self.needs and outputs.spatial is not None:
            self._spatial = self._add(self._spatial, outputs.spatial)
        if "probabilities" in self.needs and outputs.probabilities is not None:
            sums = self._scores or InceptionSums.empty(
                outputs.probabilities.shape[1], min(SPLITS, self.samples)
            )
            self._scores = sums.update(outputs.probabilities, start, self.samples)
        if "features" in self.needs and start < self.keep:
            kept = outputs.features[: self.keep - start]
            self._features.append(kept.detach().to("cpu", torch.float32))
        if "nearest" in self.needs and outputs.nearest is not None:
            self.add_nearest(outputs.nearest)
        self.seen += rows

    def _add(self, blocks: Blocks | None, features: torch.Tensor) -> Blocks:
        before = blocks or Blocks.empty(features.shape[1], self.blocks)
        return before.update(features, self.seen, self.samples)

    def add_nearest(self, distances: torch.Tensor) -> None:
        """Take in distances (rows,) of samples, or of held-out images, to the training images."""
        self._nearest.append(distances.detach().to("cpu", torch.float64))

    def merge(self, other: State) -> State:
        """The samples of both: blocks and splits side by side.

        Raises
        ------
        ValueError
            If one is not complete, or they do not hold the same.
        """
        for state in (self, other):
            state._check_complete()
        if self.held != other.held:
            raise ValueError("states that hold different things do not merge")
        merged = State(self.samples + other.samples, [])
        merged.needs, merged.seen = self.needs, merged.samples
        merged.blocks, merged.keep = self.blocks + other.blocks, self.keep + other.keep

        def both(get: Callable[[State], Any]) -> Any:
            one, two = get(self), get(other)
            return None if one is None else one.merge(two)

        merged._moments = both(lambda state: state._moments)
        merged._spatial = both(lambda state: state._spatial)
        merged._scores = both(lambda state: state._scores)
        merged._features = self._features + other._features
        merged._nearest = self._nearest + other._nearest
        return merged

    def _check_complete(self) -> None:
        if self.seen != self.samples:
            raise ValueError(f"the state holds {self.seen} of {self.samples} samples")

    # -- reading --------------------------------------------------------------------------------

    @property
    def held(self) -> frozenset[str]:
        """What the state holds, by the names of :func:`needs`."""
        parts = {
            "moments": self._moments,
            "spatial": self._spatial,
            "probabilities": self._scores,
            "features": self._features,
            "nearest": self._nearest,
        }
        return frozenset(name for name, part in parts.items() if part)

    @property
    def moments(self) -> Blocks:
        """Blocks of the features' moments."""
        return self._part("moments", self._moments)

    @property
    def spatial(self) -> Blocks:
        """Blocks of the spatial features' moments."""
        return self._part("spatial features", self._spatial)

    @property
    def probabilities(self) -> InceptionSums:
        """Sums of the inception score."""
        return self._part("class probabilities", self._scores)

    @cached_property
    def features(self) -> torch.Tensor:
        """float32 (kept, D)."""
        self._part("features", self._features)
        return torch.cat(self._features)

    @cached_property
    def nearest(self) -> torch.Tensor:
        """float64: distances to the nearest training image."""
        self._part("distances to training images", self._nearest)
        return torch.cat(self._nearest)

    @cached_property
    def similarity(self) -> float:
        """The mean kernel between the state's own features, see :func:`self_similarity`."""
        return self_similarity(self.features)

    def radii(self, k: int) -> torch.Tensor:
        """Squared distance of each of the features to its k-th nearest other one, remembered."""
        if k not in self._radii:
            self._radii[k] = radii(self.features, k)
        return self._radii[k]

    @cached_property
    def _radii(self) -> dict[int, torch.Tensor]:
        return {}

    def _part(self, name: str, part: T | None) -> T:
        self._check_complete()
        if not part:
            raise ValueError(f"there are no {name} here")
        return part

    # -- files ----------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state as named tensors, for a safetensors file.

        Raises
        ------
        ValueError
            If samples are missing.
        """
        self._check_complete()
        found = {"samples": torch.tensor([self.samples], dtype=torch.int64)}
        parts = {"moments": self._moments, "spatial": self._spatial, "scores": self._scores}
        for name, part in parts.items():
            if part is not None:
                found |= {f"{name}.{key}": value for key, value in part.tensors().items()}
        if self._features:
            found["features"] = self.features
        if self._nearest:
            found["nearest"] = self.nearest
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> State:
        """The inverse of :meth:`tensors`.

        Raises
        ------
        ValueError
            If a tensor is missing or does not fit.
        """
        if "samples" not in tensors or tensors["samples"].shape != (1,):
            raise ValueError("the tensor 'samples' is missing")
        state = cls(int(tensors["samples"][0]), [])
        state.seen = state.samples

        def part(name: str) -> dict[str, torch.Tensor]:
            start = f"{name}."
            return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

        if found := part("moments"):
            state._moments = Blocks.from_tensors(found)
            state.blocks = len(state._moments.parts)
        if found := part("spatial"):
            state._spatial = Blocks.from_tensors(found)
        if found := part("scores"):
            state._scores = InceptionSums.from_tensors(found)
        if "features" in tensors:
            state._features = [tensors["features"]]
            state.keep = len(tensors["features"])
        if "nearest" in tensors:
            state._nearest = [tensors["nearest"]]
        state.needs = state.held
        return state
