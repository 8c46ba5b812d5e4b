"""Maps on some rows of a batch, with and without padding to a few fixed counts."""

from __future__ import annotations

import pytest
import torch

from ctm_core.training.rows import SHARES, Rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chosen", [[], [2], [0, 3, 5], [0, 1, 2, 3, 4, 5, 6]])
def test_values_land_in_their_rows_and_gradients_come_from_them(
    padded: bool, chosen: list[int]
) -> None:
    mask = torch.zeros(7, dtype=torch.bool)
    mask[chosen] = True
    x = torch.arange(14.0).view(7, 2).requires_grad_()
    rows = Rows(mask, CPU, padded=padded)
    assert len(rows) == len(chosen)
    if not chosen:
        return
    result = rows.put(x, 10 * rows.of(x))
    scale = torch.where(mask, 10.0, 1.0)[:, None]
    assert torch.equal(result, x * scale)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(gradient, scale.expand(7, 2))
    assert rows.of(None) is None


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 8, 64])
def test_a_padded_map_sees_few_counts(batch: int) -> None:
    seen = set()
    for count in range(1, batch + 1):
        rows = Rows(torch.arange(batch) < count, CPU, padded=True)
        padded = len(rows.of(torch.zeros(batch)))
        assert count <= padded <= batch
        seen.add(padded)
    assert len(seen) <= SHARES
    assert len(Rows(torch.arange(batch) < 1, CPU).of(torch.zeros(batch))) == 1
