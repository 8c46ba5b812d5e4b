"""DiffAugment: each part against its formula, the laws of its parameters, and its gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.training.discriminator.diffaugment import DiffAugment, diffaugment, draw

NEUTRAL = DiffAugment(*([0.0], [1.0], [1.0], [0], [0], [0], [0]))
FAR = 32  # an offset whose square of a 16-pixel image lies outside


def parameters(count: int = 1, **changed: float) -> DiffAugment:
    """Nothing but ``changed``; without offsets the square lies outside of the image."""
    values = {"offset_x": FAR, "offset_y": FAR} | changed
    return DiffAugment(
        *(
            torch.tensor([values.get(name, neutral[0])]).expand(count)
            for name, neutral in NEUTRAL._asdict().items()
        )
    )


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_without_effect() -> None:
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(diffaugment(x, parameters(2)), x, rtol=1e-12, atol=1e-12)


def test_colour() -> None:
    x = images(2, 3, 16, 16)
    given = parameters(2, brightness=0.25, saturation=0.5, contrast=1.5)
    bright = x + 0.25
    grey = bright.mean(1, keepdim=True)
    saturated = 0.5 * bright + 0.5 * grey
    mean = saturated.flatten(1).mean(1).view(2, 1, 1, 1)
    torch.testing.assert_close(diffaugment(x, given), 1.5 * saturated - 0.5 * mean)


def test_shift_takes_rows_from_below_and_columns_from_the_left() -> None:
    x = images(1, 1, 16, 16)
    y = diffaugment(x, parameters(translation_x=2, translation_y=-1))
    torch.testing.assert_close(y[:, :, :14, 1:], x[:, :, 2:, :15])
    assert (y[:, :, 14:] == 0).all()
    assert (y[:, :, :, 0] == 0).all()


@pytest.mark.parametrize(
    ("offset", "rows"), [(0, range(2)), (7, range(6, 9)), (15, range(14, 16))]
)
def test_cutout_is_clipped_at_the_border(offset: int, rows: range) -> None:
    x = torch.ones(1, 2, 16, 16)  # the square's side is int(3.2 + 0.5) = 3
    y = diffaugment(x, parameters(offset_x=offset, offset_y=5))
    blank = torch.zeros(16, 16, dtype=torch.bool)
    blank[rows.start : rows.stop, 4:7] = True
    assert torch.equal(y[0, 0] == 0, blank)
    assert torch.equal(y[0, 0], y[0, 1])


def test_each_sample_has_its_own() -> None:
    x = images(4, 3, 16, 16)
    drawn = draw(partial(_uniform, 4), (16, 16))
    together = diffaugment(x, drawn)
    for row in range(4):
        alone = diffaugment(x[row : row + 1], DiffAugment(*(v[row : row + 1] for v in drawn)))
        torch.testing.assert_close(alone, together[row : row + 1])


def test_gradient() -> None:
    x = images(2, 2, 6, 5).requires_grad_()
    drawn = draw(partial(_uniform, 2), (6, 5))
    assert torch.autograd.gradcheck(lambda z: diffaugment(z, drawn), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_memory_format(dtype: torch.dtype) -> None:
    x = images(2, 3, 32, 32, dtype=dtype)
    drawn = draw(partial(_uniform, 2), (32, 32))
    last = x.to(memory_format=torch.channels_last)
    assert diffaugment(last, drawn).dtype == dtype
    torch.testing.assert_close(diffaugment(last, drawn), diffaugment(x, drawn))


def _uniform(count: int, stream: str) -> Tensor:
    return randomness.uniform(7, stream, 3, 0, count)


def test_laws() -> None:
    count = 20_000
    drawn = draw(partial(_uniform, count), (32, 20))
    for name, low, width in (
        ("brightness", -0.5, 1),
        ("saturation", 0, 2),
        ("contrast", 0.5, 1),
    ):
        value = getattr(drawn, name).numpy()
        assert stats.kstest(value, stats.uniform(low, width).cdf).pvalue > 1e-4, name
    # Rows: r = 4 and a square of side 6; columns: r = int(2.5 + 0.5) = 3 and side 4.
    for name, low, high in (
        ("translation_x", -4, 4),
        ("translation_y", -3, 3),
        ("offset_x", 0, 32),
        ("offset_y", 0, 20),
    ):
        value = getattr(drawn, name)
        assert (int(value.min()), int(value.max())) == (low, high), name
        assert stats.chisquare(torch.bincount(value - low).numpy()).pvalue > 1e-4, name
    odd = draw(partial(_uniform, count), (16, 16))
    assert int(odd.offset_x.max()) == 15  # the side 3 is odd


def test_streams_differ() -> None:
    real, fake = (draw(partial(_uniform, 5), (8, 8), stream) for stream in ("real", "fake"))
    assert not torch.equal(real.brightness, fake.brightness)
    again = draw(partial(_uniform, 5), (8, 8), "real")
    assert all(torch.equal(a, b) for a, b in zip(real, again, strict=True))
