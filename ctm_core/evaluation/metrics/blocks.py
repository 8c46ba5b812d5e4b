"""Moments of a stream of features in blocks of sample index.

Block b of B holds the samples ⌊b n / B⌋ … ⌊(b + 1) n / B⌋ - 1 of n. Samples are independent of
their index, so blocks are independent sets of samples: merged they are the whole, in groups they
give the distance at n/2 and n/4, and left out one at a time its standard error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise

from ctm_core.evaluation.metrics.moments import Moments


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


def groups(blocks: Sequence[Moments], count: int) -> list[Moments]:
    """The moments of ``count`` sets of as many consecutive blocks each."""
    each, rest = divmod(len(blocks), count)
    if rest:
        raise ValueError(f"{len(blocks)} blocks do not make {count} equal groups")
    return [
        reduce(Moments.merge, blocks[start : start + each])
        for start in range(0, len(blocks), each)
    ]


def whole(blocks: Sequence[Moments]) -> Moments:
    """The moments of all rows."""
    return reduce(Moments.merge, blocks)


def left_out(blocks: Sequence[Moments]) -> Iterator[Moments]:
    """The moments of all blocks but one, for each block."""
    everything = whole(blocks)
    return (everything.without(block) for block in blocks)
