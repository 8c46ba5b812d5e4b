"""Moments of a stream of features in blocks of sample index.

Block b of B holds the samples ⌊b n / B⌋ … ⌊(b + 1) n / B⌋ - 1 of n. Samples are independent of
their index, so blocks are independent sets of samples: merged they are the whole, in groups they
give the distance at n/2 and n/4, and left out one at a time its standard error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch

from ctm_core.evaluation.metrics.moments import Moments

__all__ = ["Blocks", "bounds", "pieces"]


def bounds(samples: int, count: int) -> list[int]:
    """The count + 1 indices at which blocks of ``samples`` begin and the last one ends."""
    if not 1 <= count <= samples:
        raise ValueError(f"{samples} samples do not make {count} blocks")
    return [block * samples // count for block in range(count + 1)]


def pieces(samples: int, count: int, start: int, length: int) -> Iterator[tuple[int, slice]]:
    """The blocks that samples ``start … start + length - 1`` fall into, with their rows."""
    edges = bounds(samples, count)
    for block, (low, high) in enumerate(pairwise(edges)):
        first, last = max(low, start) - start, min(high, start + length) - start
        if first < last:
            yield block, slice(first, last)


@dataclass(frozen=True)
class Blocks:
    """Moments of every block; at least one, all of one dimension."""

    parts: tuple[Moments, ...]

    @classmethod
    def empty(cls, dim: int, count: int) -> Blocks:
        """``count`` blocks before the first row."""
        return cls(tuple(Moments.empty(dim) for _ in range(count)))

    def update(self, features: torch.Tensor, start: int, samples: int) -> Blocks:
        """The state after the features (rows, D) of samples ``start …`` of ``samples``."""
        parts = list(self.parts)
        for block, rows in pieces(samples, len(parts), start, len(features)):
            parts[block] = parts[block].update(features[rows])
        return Blocks(tuple(parts))

    def merge(self, other: Blocks) -> Blocks:
        """The blocks of both, side by side."""
        if self.parts[0].dim != other.parts[0].dim:
            raise ValueError("blocks of different dimensions do not merge")
        return Blocks(self.parts + other.parts)

    def whole(self) -> Moments:
        """The moments of all rows."""
        (whole,) = self.groups(1)
        return whole

    def groups(self, count: int) -> list[Moments]:
        """The moments of ``count`` sets of as many consecutive blocks each.

        Raises
        ------
        ValueError
            If the blocks cannot be divided so.
        """
        each, rest = divmod(len(self.parts), count)
        if rest:
            raise ValueError(f"{len(self.parts)} blocks do not make {count} equal groups")
        merged = []
        for group in range(count):
            state = self.parts[group * each]
            for part in self.parts[group * each + 1 : (group + 1) * each]:
                state = state.merge(part)
            merged.append(state)
        return merged

    def left_out(self) -> Iterator[Moments]:
        """The moments of all blocks but one, for each block."""
        whole = self.whole()
        return (whole.without(part) for part in self.parts)

    def tensors(self) -> dict[str, torch.Tensor]:
        """n (B,), mean (B, D) and scatter (B, D, D)."""
        each = [part.tensors() for part in self.parts]
        joined = {"n": torch.cat([tensors["n"] for tensors in each])}
        return joined | {
            name: torch.stack([tensors[name] for tensors in each]) for name in ("mean", "scatter")
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Blocks:
        """The inverse of :meth:`tensors`.

        Raises
        ------
        ValueError
            If a tensor is missing or does not fit.
        """
        try:
            n, mean, scatter = tensors["n"], tensors["mean"], tensors["scatter"]
        except KeyError as error:
            raise ValueError(f"the tensor {error} is missing") from None
        if n.ndim != 1 or not 1 <= len(n) == len(mean) == len(scatter):
            raise ValueError("the tensors are not of one number of blocks")
        return cls(
            tuple(
                Moments.from_tensors({"n": n[b : b + 1], "mean": mean[b], "scatter": scatter[b]})
                for b in range(len(n))
            )
        )
