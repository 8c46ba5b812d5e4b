"""Embeddings of a scalar against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ctm_core.models.networks.embeddings import (
    FourierEmbedding,
    PositionalEmbedding,
    TimestepEmbedding,
)

A = torch.tensor([0.0, 1.0, -1.55], dtype=torch.float64)


def test_positional_embedding_closed_form() -> None:
    frequencies = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)  # 10000^(-i/2)
    angles = A[:, None] * frequencies
    expected = torch.cat([angles.sin(), angles.cos()], 1)
    torch.testing.assert_close(PositionalEmbedding(6)(A), expected, rtol=1e-12, atol=1e-12)


def test_timestep_embedding_closed_form() -> None:
    a = 1000 * A
    frequencies = torch.tensor([1.0, 0.1, 1e-2, 1e-3], dtype=torch.float64)  # 10000^(-i/4)
    angles = a[:, None] * frequencies
    expected = torch.cat([angles.cos(), angles.sin()], 1)
    torch.testing.assert_close(TimestepEmbedding(8)(a), expected, rtol=1e-9, atol=1e-9)


def test_fourier_embedding_closed_form() -> None:
    embedding = FourierEmbedding(6)
    angles = 2 * math.pi * A[:, None] * embedding.freqs.double()
    expected = torch.cat([angles.sin(), angles.cos()], 1)
    torch.testing.assert_close(embedding(A), expected, rtol=1e-10, atol=1e-10)


def test_fourier_frequencies_are_a_saved_buffer_of_deviation_16() -> None:
    torch.manual_seed(0)
    embedding = FourierEmbedding(20_000)
    assert list(embedding.state_dict()) == ["freqs"] and not list(embedding.parameters())
    assert abs(float(embedding.freqs.std()) - 16) < 0.5
    assert abs(float(embedding.freqs.mean())) < 0.5
    torch.manual_seed(0)
    again = FourierEmbedding(20_000)
    assert torch.equal(embedding.freqs, again.freqs)


@pytest.mark.parametrize("embedding", [PositionalEmbedding(2), TimestepEmbedding(2)])
def test_the_smallest_width(embedding: nn.Module) -> None:
    emb = embedding(A)
    assert emb.shape == (3, 2)
    torch.testing.assert_close(emb.square().sum(1), torch.ones(3, dtype=torch.float64))
