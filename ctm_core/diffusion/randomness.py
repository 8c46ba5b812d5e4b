r"""Random numbers as a pure function of (seed, stream, step, sample index).

A draw is made by the counter-based generator Philox-4x64 (Salmon et al., 2011): the key holds
(seed, stream), the counter holds (step, sample index). Nothing is stored between draws, so a
result cannot depend on restarts, on how a batch is split, or on how many processes share it: the
rows of samples :math:`a, …, b-1` are the same whether they are drawn in one call or in many.

Layout of the 256-bit counter, low word first: ``(sample index * blocks, 0, step, 0)``, where one
block is four 64-bit words and a sample owns as many blocks as its shape needs.
"""

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri


def _key(seed: int, stream: str) -> NDArray[np.uint64]:
    digest = hashlib.sha256(stream.encode()).digest()
    return np.array([seed % 2**64, int.from_bytes(digest[:8], "little")], dtype=np.uint64)


def _words(
    seed: int, stream: str, step: int, start: int, count: int, words: int
) -> NDArray[np.uint64]:
    """Raw 64-bit words of shape (count, words) for samples ``start … start + count - 1``."""
    blocks = max(1, math.ceil(words / 4))
    counter = np.array([start * blocks, 0, step, 0], dtype=np.uint64)
    raw = np.random.Philox(key=_key(seed, stream), counter=counter).random_raw(count * blocks * 4)
    return np.asarray(raw, dtype=np.uint64).reshape(count, blocks * 4)[:, :words]


def _unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    # 52 bits, centred in their cell: exact in float64 and strictly inside (0, 1).
    return np.asarray(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def uniform(
    seed: int, stream: str, step: int, start: int, count: int, shape: tuple[int, ...] = ()
) -> torch.Tensor:
    """Uniform numbers in (0, 1).

    Parameters
    ----------
    seed, stream, step
        The key and the high counter word; ``stream`` is any name.
    start, count
        Sample indices ``start … start + count - 1``, one row each.
    shape
        Shape of one sample.

    Returns
    -------
    Tensor of shape (count, \\*shape), float64, on the CPU.
    """
    words = _words(seed, stream, step, start, count, math.prod(shape))
    return torch.from_numpy(_unit(words)).reshape(count, *shape)


def normal(
    seed: int, stream: str, step: int, start: int, count: int, shape: tuple[int, ...] = ()
) -> torch.Tensor:
    """Standard normal quantiles of :func:`uniform`: (count, \\*shape), float32, on the CPU."""
    numbers = uniform(seed, stream, step, start, count, shape).numpy()
    return torch.from_numpy(ndtri(numbers).astype(np.float32)).reshape(count, *shape)


def integers(seed: int, stream: str, step: int, start: int, count: int, high: int) -> torch.Tensor:
    """Integers uniform on {0, …, high - 1}, one per sample: shape (count,), int64."""
    return (uniform(seed, stream, step, start, count) * high).floor().long()


def permutation(seed: int, stream: str, epoch: int, n: int) -> NDArray[np.int64]:
    """A random order of {0, …, n - 1}, a function of (seed, stream, epoch) alone; int64."""
    counter = np.array([0, 0, epoch, 0], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=_key(seed, stream), counter=counter))
    return generator.permutation(n).astype(np.int64)


def torch_seed(seed: int, stream: str, step: int, index: int = 0) -> int:
    """A 63-bit seed for torch's own generator, used only where torch insists on it (dropout)."""
    return int(_words(seed, stream, step, index, 1, 1)[0, 0] >> np.uint64(1))
