"""Draws are a function of (seed, stream, step, sample index), and of nothing else."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ctm_core.diffusion import randomness

P = 1e-4  # below this a law counts as missed


def philox(key: tuple[int, int], counter: list[int]) -> list[int]:
    """One block of Philox-4x64-10, from the definition (Salmon et al. 2011, section 4.3)."""
    word = 2**64
    k0, k1 = key
    c = list(counter)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], word)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], word)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % word, (k1 + 0xBB67AE8584CAA73B) % word
    return c


def test_draws_are_philox_of_the_documented_key_and_counter() -> None:
    seed, stream, step, index = 11, "noise", 5, 3
    key = (seed, int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little"))
    # Six numbers need two blocks a sample; the generator counts up before each block.
    words = [
        word for block in range(2) for word in philox(key, [2 * index + block + 1, 0, step, 0])
    ]
    expected = [((word >> 12) + 0.5) * 2.0**-52 for word in words[:6]]
    drawn = randomness.uniform(seed, stream, step, index, 1, (6,))[0]
    assert drawn.tolist() == expected
    normal = randomness.normal(seed, stream, step, index, 1, (2, 3))[0]
    quantiles = stats.norm.ppf(expected).astype(np.float32).reshape(2, 3)
    np.testing.assert_allclose(normal.numpy(), quantiles, rtol=1e-6)


@settings(max_examples=40)
@given(
    start=st.integers(0, 2**40),
    count=st.integers(1, 20),
    cut=st.integers(0, 20),
    shape=st.sampled_from([(), (1,), (3,), (4,), (5,), (2, 3, 3)]),
)
def test_rows_do_not_depend_on_how_a_range_is_split(
    start: int, count: int, cut: int, shape: tuple[int, ...]
) -> None:
    cut = min(cut, count)
    for draw in (randomness.uniform, randomness.normal):
        whole = draw(3, "noise", 7, start, count, shape)
        parts = [
            draw(3, "noise", 7, start, cut, shape),
            draw(3, "noise", 7, start + cut, count - cut, shape),
        ]
        assert whole.shape == (count, *shape)
        assert torch.equal(whole, torch.cat(parts))
    whole = randomness.integers(3, "noise", 7, start, count, 10)
    parts = [
        randomness.integers(3, "noise", 7, start, cut, 10),
        randomness.integers(3, "noise", 7, start + cut, count - cut, 10),
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_every_part_of_the_address_matters() -> None:
    draws = {
        tuple(randomness.uniform(seed, stream, step, index, 1, (2,)).flatten().tolist())
        for seed in (0, 1, 2**63, -1)
        for stream in ("a", "b", "ab")
        for step in (0, 1, 2**40)
        for index in (0, 1, 2**40)
    }
    assert len(draws) == 4 * 3 * 3 * 3
    seeds = {
        randomness.torch_seed(seed, stream, step, index)
        for seed in (0, 1)
        for stream in ("a", "b")
        for step in (0, 1)
        for index in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    orders = {
        tuple(randomness.permutation(seed, stream, epoch, 20))
        for seed in (0, 1)
        for stream in ("a", "b")
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_types_and_shapes() -> None:
    assert randomness.uniform(0, "a", 0, 0, 3).dtype == torch.float64
    assert randomness.uniform(0, "a", 0, 0, 3).shape == (3,)
    assert randomness.normal(0, "a", 0, 0, 3, (2, 5)).dtype == torch.float32
    assert randomness.integers(0, "a", 0, 0, 3, 10).dtype == torch.int64
    assert randomness.permutation(0, "a", 0, 4).dtype == np.int64
    assert randomness.normal(0, "a", 0, 0, 0, (2, 5)).shape == (0, 2, 5)


def test_the_unit_interval_is_open() -> None:
    extremes = randomness._unit(np.array([0, 1, 2**64 - 1], dtype=np.uint64))
    assert extremes.min() > 0 and extremes.max() < 1
    assert np.isfinite(stats.norm.ppf(extremes)).all()


@pytest.mark.parametrize("stream", ["noise", "t", "k"])
@pytest.mark.parametrize("across", ["samples", "steps", "elements"])
def test_laws(stream: str, across: str) -> None:
    """Uniform and normal along each axis of the address."""
    n = 4000
    if across == "samples":
        uniform = randomness.uniform(1, stream, 0, 0, n).flatten()
        normal = randomness.normal(1, stream, 0, 0, n).flatten()
    elif across == "elements":
        uniform = randomness.uniform(1, stream, 0, 0, 1, (n,)).flatten()
        normal = randomness.normal(1, stream, 0, 0, 1, (n,)).flatten()
    else:
        uniform = torch.cat([randomness.uniform(1, stream, step, 0, 1) for step in range(n)])
        normal = torch.cat([randomness.normal(1, stream, step, 0, 1) for step in range(n)])
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > P
    assert stats.kstest(normal.numpy(), "norm").pvalue > P


def test_integers_are_uniform() -> None:
    drawn = randomness.integers(0, "labels", 0, 0, 20_000, 10)
    counts = torch.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > P


def test_neighbours_are_uncorrelated() -> None:
    n = 10_000
    draws = [
        randomness.normal(0, "noise", 0, 0, n),
        randomness.normal(0, "noise", 1, 0, n),
        randomness.normal(1, "noise", 0, 0, n),
        randomness.normal(0, "dsm_noise", 0, 0, n),
        randomness.normal(0, "noise", 0, 1, n),
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(n)


@settings(max_examples=30)
@given(n=st.integers(1, 300), epoch=st.integers(0, 1000))
def test_permutation_is_one(n: int, epoch: int) -> None:
    assert sorted(randomness.permutation(0, "order", epoch, n)) == list(range(n))


def test_permutations_are_uniform() -> None:
    orders = [tuple(randomness.permutation(0, "order", epoch, 3)) for epoch in range(1200)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > P
