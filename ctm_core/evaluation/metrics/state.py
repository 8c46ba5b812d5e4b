"""What one pass over images leaves for the metrics: of samples, and of the reference.

How evaluation uses it::

    state = State(protocol.samples, protocol.needs, blocks=4)  # one (cell, seed, protocol)
    for outputs in batches:                                    # in order of sample index
        state.update(outputs)                                  # {"features": …, "spatial": …}
    save_tensors(path, state.tensors(), metadata)              # the cell's file
    state = State.from_tensors(load_tensors(path)[0])
    pooled = state.merge(state_of_the_next_seed)               # protocols that pool their seeds
    rows = scores(state, reference, protocol)                  # of .scoring

A state is a table of named tensors, and two states merge by joining each of their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch

from ctm_core.evaluation.metrics.blocks import pieces
from ctm_core.evaluation.metrics.moments import Moments

T = TypeVar("T")

#: Splits of the inception score.
SPLITS = 10

#: Types and shapes; equal letters are equal sizes, the first of which grows when states merge. B
#: blocks of D features and S spatial features, P splits over K classes, features of the first R
#: samples, and the distances of Q images.
LAYOUT = {
    "samples": (torch.int64, "1"),
    "moments.n": (torch.int64, "B"),
    "moments.mean": (torch.float64, "BD"),
    "moments.scatter": (torch.float64, "BDD"),
    "spatial.n": (torch.int64, "B"),
    "spatial.mean": (torch.float64, "BS"),
    "spatial.scatter": (torch.float64, "BSS"),
    "scores.n": (torch.int64, "P"),
    "scores.negative_entropy": (torch.float64, "P"),
    "scores.probabilities": (torch.float64, "PK"),
    "features": (torch.float32, "RD"),
    "nearest": (torch.float64, "Q"),
}


class State:
    """Moments in blocks of sample index, sums, and features where a metric needs them.

    ``samples`` is how many there will be; blocks and splits are parts of this number. ``needs`` is
    what to hold beside the moments of the features: ``features`` themselves, float32 (R, D);
    moments of flat ``spatial`` features (rows, S), for sFID; sums over class ``probabilities``
    (rows, K), for the inception score; ``nearest``, float64 (Q,):
    :func:`ctm_core.evaluation.metrics.nearest.nearest_distances`. ``blocks`` of the moments are a
    multiple of 4 for the extrapolated distance, more for a better standard error, 1 for a
    reference. Features of the first ``keep`` samples are held, or all.
    """

    def __init__(
        self, samples: int, needs: Collection[str], *, blocks: int = 4, keep: int | None = None
    ) -> None:
        self.samples = samples
        self.seen = 0
        self.inputs = {"features", *needs} - {"moments"}
        self.keeps_features = "features" in needs
        self._sizes = {
            "B": min(blocks, samples),
            "P": min(SPLITS, samples),
            "R": samples if keep is None else min(keep, samples),
            "Q": samples,
        }
        self._tensors = {"samples": torch.tensor([samples])}
        self._remembered: dict[str, Any] = {}

    @classmethod
    def of_moments(
        cls,
        moments: Moments,
        spatial: Moments | None = None,
        features: torch.Tensor | None = None,
    ) -> State:
        """A reference of known mean and covariance, and perhaps features of a few images."""
        tensors = {"samples": torch.tensor([moments.n])}
        for part, known in (("moments", moments), ("spatial", spatial)):
            if known is not None:
                tensors[f"{part}.n"] = torch.tensor([known.n])
                tensors[f"{part}.mean"] = known.mean[None]
                tensors[f"{part}.scatter"] = known.scatter[None]
        if features is not None:
            tensors["features"] = features
        return cls.from_tensors(tensors)

    # -- filling --------------------------------------------------------------------------------

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Take in the next batch, in order of sample index; outputs not needed are ignored."""
        rows = len(outputs["features"])
        for name in self.inputs:
            if name not in outputs:
                raise ValueError(f"a metric needs {name}, but the batch has none")
            if len(outputs[name]) != rows:
                raise ValueError(f"{len(outputs[name])} rows of {name} for {rows} of features")
        if self.seen + rows > self.samples:
            raise ValueError(f"more than the {self.samples} samples announced")
        self._add_moments("moments", "D", outputs["features"])
        if "spatial" in self.inputs:
            self._add_moments("spatial", "S", outputs["spatial"])
        if "probabilities" in self.inputs:
            self._add_probabilities(outputs["probabilities"])
        if self.keeps_features:
            self._fill("features", outputs["features"])
        if "nearest" in self.inputs:
            self._fill("nearest", outputs["nearest"])
        self.seen += rows

    def _held(self, name: str) -> torch.Tensor:
        """The tensor of a name, zeros at first."""
        if name not in self._tensors:
            dtype, shape = LAYOUT[name]
            self._tensors[name] = torch.zeros([self._sizes[i] for i in shape], dtype=dtype)
        return self._tensors[name]

    def _add_moments(self, part: str, letter: str, rows: torch.Tensor) -> None:
        self._sizes[letter] = rows.shape[1]
        n, mean, scatter = (self._held(f"{part}.{name}") for name in Moments._fields)
        for block, place in pieces(self.samples, len(n), self.seen, len(rows)):
            before = Moments(int(n[block]), mean[block], scatter[block])
            n[block], mean[block], scatter[block] = before.merge(Moments.of(rows[place]))

    def _add_probabilities(self, rows: torch.Tensor) -> None:
        p = rows.detach().to(device="cpu", dtype=torch.float64)
        sums = p.sum(dim=1)
        if not bool(((sums - 1).abs() < 1e-3).all()) or bool((p < 0).any()):
            raise ValueError("class probabilities must be non-negative and sum to 1")
        p = p / sums[:, None]
        self._sizes["K"] = p.shape[1]
        n, entropy = self._held("scores.n"), self._held("scores.negative_entropy")
        total = self._held("scores.probabilities")
        for split, place in pieces(self.samples, len(n), self.seen, len(p)):
            n[split] += place.stop - place.start
            entropy[split] += torch.xlogy(p[place], p[place]).sum()
            total[split] += p[place].sum(dim=0)

    def _fill(self, name: str, rows: torch.Tensor) -> None:
        room = self._held(name)[self.seen : self.seen + len(rows)]
        room.copy_(rows[: len(room)].detach())

    # -- reading --------------------------------------------------------------------------------

    @property
    def held(self) -> frozenset[str]:
        """What the state holds, by the names of ``needs``."""
        parts = {name.partition(".")[0] for name in self._tensors} - {"samples"}
        return frozenset("probabilities" if part == "scores" else part for part in parts)

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor of :data:`LAYOUT`."""
        self._check_complete()
        if name not in self._tensors:
            raise ValueError(f"there are no {name.partition('.')[0]} here")
        return self._tensors[name]

    def moments(self, part: str = "moments") -> list[Moments]:
        """Moments of every block, of the features or (``spatial``) of the spatial features."""
        n, mean, scatter = (self[f"{part}.{name}"] for name in Moments._fields)
        return [Moments(int(n[b]), mean[b], scatter[b]) for b in range(len(n))]

    def remembered(self, name: str, compute: Callable[[], T]) -> T:
        """What a metric computes of a reference once for all cells."""
        if name not in self._remembered:
            self._remembered[name] = compute()
        value: T = self._remembered[name]
        return value

    def merge(self, other: State) -> State:
        """The samples of both: blocks and splits side by side."""
        one, two = self.tensors(), other.tensors()
        shapes = [{name: held[name].shape[1:] for name in held} for held in (one, two)]
        if shapes[0] != shapes[1]:
            raise ValueError("states that hold different things do not merge")
        joined = {name: torch.cat([one[name], two[name]]) for name in one}
        return State.from_tensors(joined | {"samples": one["samples"] + two["samples"]})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of :data:`LAYOUT` that are held; ValueError if samples are missing."""
        self._check_complete()
        return dict(self._tensors)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> State:
        """The inverse of :meth:`tensors`."""
        parts = {name.partition(".")[0] for name in tensors} | {"samples"}
        sizes = {"1": 1}
        for name, (dtype, shape) in LAYOUT.items():
            if name.partition(".")[0] not in parts:
                continue
            if name not in tensors:
                raise ValueError(f"the tensor {name!r} is missing")
            tensor = tensors[name]
            fits = tensor.dtype == dtype and tensor.ndim == len(shape) and tensor.numel() > 0
            # Of unequal lengths it does not fit, whatever the sizes.
            for letter, size in zip(shape, tensor.shape, strict=False):
                fits = fits and size == sizes.setdefault(letter, size)
            if not fits:
                raise ValueError(
                    f"the tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, which "
                    "does not fit"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"the tensor {name!r} holds NaN or infinity")
        state = cls(int(tensors["samples"][0]), ())
        state.seen = state.samples
        state._tensors = {name: tensors[name] for name in LAYOUT if name in tensors}
        return state

    def _check_complete(self) -> None:
        if self.seen != self.samples:
            raise ValueError(f"the state holds {self.seen} of {self.samples} samples")
