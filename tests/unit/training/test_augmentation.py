"""EDM's augmentation: its filter, exact special cases, laws and labels."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.training.augmentation import (
    LABEL_DIM,
    SYM6,
    Parameters,
    Settings,
    activate,
    augment,
    batch_margins,
    draw,
)


def parameters(**given: float) -> Parameters:
    return Parameters(
        *(torch.tensor([given.get(name, 0.0)], dtype=torch.float64) for name in Parameters._fields)
    )


def images(count: int = 1, side: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, side, side, generator=generator, dtype=dtype)


def smooth(side: int = 32) -> Tensor:
    """A bump off the centre, shape (1, 1, side, side), and zero near the border."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side, dtype=torch.float64)] * 2, indexing="ij")
    return torch.exp(-30 * ((x - 0.2) ** 2 + (y + 0.1) ** 2))[None, None]


def test_sym6_is_orthonormal_with_six_vanishing_moments() -> None:
    taps = np.array(SYM6)
    assert len(taps) == 12
    assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    for shift in range(6):
        inner = taps[2 * shift :] @ taps[: 12 - 2 * shift]
        assert inner == pytest.approx(float(shift == 0), abs=1e-11)
    k = np.arange(12)
    for moment in range(6):
        high_pass = (-1.0) ** k * taps
        assert high_pass @ (k - 5.5) ** moment == pytest.approx(0, abs=1e-7), moment


def test_nothing_changes_nothing() -> None:
    x = images(2)
    y, labels = augment(x, Parameters(*(v.expand(2) for v in parameters())))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-11)
    assert torch.equal(labels, torch.zeros(2, LABEL_DIM).double())


def test_flips() -> None:
    x = images()
    y, labels = augment(x, parameters(xflip=1))
    torch.testing.assert_close(y, x.flip(3), rtol=0, atol=1e-11)
    assert labels.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    y, _ = augment(x, parameters(xflip=1, yflip=1))
    torch.testing.assert_close(y, x.flip(2, 3), rtol=0, atol=1e-11)


def test_translation_by_whole_pixels() -> None:
    x = images()  # 1/8 of 16 pixels a unit
    y, labels = augment(x, parameters(translate_x=1.0, translate_y=-0.5))
    torch.testing.assert_close(y[:, :, :-1, 2:], x[:, :, 1:, :-2], rtol=0, atol=1e-10)
    # What comes in is the reflection of what was there.
    torch.testing.assert_close(y[:, :, :-1, 1], x[:, :, 1:, 1], rtol=0, atol=1e-10)
    torch.testing.assert_close(y[:, :, -1, 2:], x[:, :, -2, :-2], rtol=0, atol=1e-10)
    assert labels[0, 7:].tolist() == [1.0, -0.5]


#: Mean delay of the filter, in pixels of the image (two of the supersampled grid).
DELAY = (float(np.arange(12) @ np.array(SYM6)) / math.sqrt(2) - 5.5) / 2


def _centre(image: Tensor) -> tuple[float, float]:
    """Centre of mass (x, y) in pixels from the point about which the map turns."""
    side = image.shape[-1]
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2 + 0.25 + DELAY
    mass = image[0, 0] / image.sum()
    return float(mass.sum(0) @ place), float(mass.sum(1) @ place)


def test_rotation_is_anticlockwise_about_the_centre() -> None:
    x = smooth()
    assert pytest.approx(-0.2, abs=0.01) == DELAY
    before = _centre(x)
    y, labels = augment(x, parameters(angle=math.pi / 2))
    # As seen, with y pointing down: (x, y) goes to (y, -x).
    assert _centre(y) == pytest.approx((before[1], -before[0]), abs=0.01)
    assert labels[0, 3:5].tolist() == pytest.approx([-1, 1])


def test_scale_and_anisotropic_scale() -> None:
    x = smooth()
    before = _centre(x)
    y, labels = augment(x, parameters(scale=1.0))
    factor = 2**0.2
    assert _centre(y) == pytest.approx((factor * before[0], factor * before[1]), abs=0.01)
    assert float(y.sum() / x.sum()) == pytest.approx(factor**2, rel=0.01)
    assert labels[0, 2] == 1
    y, labels = augment(x, parameters(aniso=1.0))
    assert _centre(y) == pytest.approx((factor * before[0], before[1] / factor), abs=0.01)
    assert labels[0, 5:7].tolist() == [1, 0]
    y, labels = augment(x, parameters(aniso=1.0, axis=math.pi / 2))
    assert _centre(y) == pytest.approx((before[0] / factor, factor * before[1]), abs=0.01)
    assert labels[0, 5:7].tolist() == pytest.approx([0, 1])


def test_a_sample_depends_on_no_other() -> None:
    count = 6
    given = activate(draw(partial(_uniform, count)), Settings(p=1.0))
    x = images(count)
    together, labels = augment(x, given)
    for row in range(count):
        one = Parameters(*(v[row : row + 1] for v in given))
        alone, label = augment(x[row : row + 1], one)
        torch.testing.assert_close(alone[0], together[row])
        torch.testing.assert_close(label[0], labels[row])


def test_margins_of_a_batch() -> None:
    assert batch_margins(parameters(), (16, 16)) == (6, 6, 6, 6)  # half the filter's taps
    # What moves by two pixels to the right is looked up two pixels farther left.
    moved = parameters(translate_x=1.0)
    assert batch_margins(moved, (16, 16)) == (8, 4, 6, 6)
    far = parameters(translate_y=-8.0)
    assert batch_margins(far, (16, 16)) == (6, 6, 0, 15)
    both = Parameters(*(torch.cat(pair) for pair in zip(moved, far, strict=True)))
    assert batch_margins(both, (16, 16)) == (8, 6, 6, 15)


def test_margins_change_little() -> None:
    count = 8
    given = activate(draw(partial(_uniform, count)), Settings(p=0.5))
    x = images(count)
    whole, _ = augment(x, given)
    cut, _ = augment(x, given, margins=batch_margins(given, (16, 16)))
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-3)
    generous, _ = augment(x, given, margins=(15, 14, 13, 15))
    torch.testing.assert_close(generous, whole, rtol=0, atol=1e-3)
    assert not torch.equal(cut, whole)


def test_bfloat16_region_and_memory_format() -> None:
    given = activate(draw(partial(_uniform, 2)), Settings(p=1.0))
    x = images(2, dtype=torch.float32)
    plain, _ = augment(x, given)
    with torch.autocast("cpu", torch.bfloat16):
        y, labels = augment(x.to(memory_format=torch.channels_last), given)
    assert y.dtype == labels.dtype == torch.float32
    torch.testing.assert_close(y, plain)


def _uniform(count: int, stream: str) -> Tensor:
    return randomness.uniform(5, stream, 2, 0, count)


def test_laws() -> None:
    count = 40_000
    draws = draw(partial(_uniform, count))
    given = activate(draws)
    rates = {name: float((getattr(given, name) != 0).double().mean()) for name in given._fields}
    rates.pop("axis")
    expected = dict.fromkeys(rates, 0.12) | {"xflip": 0.5, "yflip": 0.06}
    for name, rate in rates.items():
        tail = stats.binomtest(round(rate * count), count, expected[name]).pvalue
        assert tail > 1e-4, (name, rate)
    # Both translations act together; the others are independent.
    assert torch.equal(given.translate_x != 0, given.translate_y != 0)
    for name in ("scale", "aniso", "translate_x", "translate_y"):
        value = getattr(given, name)
        assert stats.kstest(value[value != 0].numpy(), "norm").pvalue > 1e-4, name
    for name, share in (("angle", 1.0), ("axis", 0.5)):
        value = getattr(given, name)
        turned = value[value != 0].numpy()
        law = stats.uniform(-math.pi, 2 * math.pi).cdf
        assert stats.kstest(turned, law).pvalue > 1e-4, name
        if share < 1:
            assert stats.binomtest(len(turned), count, share).pvalue > 1e-4
