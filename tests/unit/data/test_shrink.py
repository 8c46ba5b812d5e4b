"""ImageNet 64×64's recipe for one image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fixtures.photographs import DAMAGED, encoded, photograph
from numpy.typing import NDArray
from PIL import Image

from ctm_core.data.picture_files import Refused
from ctm_core.data.readers._shrink import shrink


def test_an_image_of_the_right_height_is_cut_out_of_its_middle() -> None:
    generator = np.random.default_rng(0)
    for width, left in ((64, 0), (100, 18), (101, 18)):
        pixels = generator.integers(0, 256, (64, width, 3), dtype=np.uint8)
        made = shrink(encoded(pixels))
        assert made.dtype == np.uint8 and made.flags.c_contiguous
        assert np.array_equal(made, pixels[:, left : left + 64].transpose(2, 0, 1))
        made = shrink(encoded(pixels.transpose(1, 0, 2)))
        assert np.array_equal(made, pixels[:, left : left + 64].transpose(2, 1, 0))


def box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampled(
    pixels: NDArray[np.float64],
    size: tuple[int, int],
    kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Antialiased: the kernel is as wide as an output pixel; levels rounded in each direction."""
    for axis, length in ((1, size[1]), (0, size[0])):
        scale = pixels.shape[axis] / length
        centres = (np.arange(length) + 0.5) * scale
        distances = np.arange(pixels.shape[axis]) + 0.5 - centres[:, None]
        weights = kernel(distances / max(scale, 1.0))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
        pixels = np.floor(pixels + 0.5).clip(0, 255)
    return pixels


@pytest.mark.parametrize(
    "size", [(64, 64), (127, 200), (90, 127), (50, 40), (128, 128), (300, 255), (500, 375)]
)
def test_the_recipe_from_its_definition(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = pixels.astype(np.float64)
    while min(expected.shape[:2]) >= 128:
        height, width = expected.shape[:2]
        expected = resampled(expected, (height // 2, width // 2), box)
    scale = 64 / min(expected.shape[:2])
    height, width = (round(n * scale) for n in expected.shape[:2])
    expected = resampled(expected, (height, width), cubic)
    top, left = (height - 64) // 2, (width - 64) // 2
    expected = expected[top : top + 64, left : left + 64].transpose(2, 0, 1)
    difference = np.abs(shrink(encoded(pixels)) - expected)
    # Pillow's weights are integers of 22 bits: a tie may fall to the other side.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_every_mode_becomes_rgb() -> None:
    picture = photograph(2)
    grey = shrink(encoded(picture.convert("L"), "JPEG", quality=95))
    assert np.array_equal(grey[0], grey[1]) and np.array_equal(grey[0], grey[2])
    plain = shrink(encoded(picture)).astype(int)
    for other in (
        encoded(picture.convert("CMYK"), "JPEG", quality=100, subsampling=0),
        encoded(picture, "JPEG", quality=100, subsampling=0),
        encoded(picture.convert("RGBA")),
        encoded(picture, "JPEG", quality=95, progressive=True),
    ):
        assert np.abs(shrink(other) - plain).mean() < 2
    palette = shrink(encoded(picture.convert("P", palette=Image.Palette.ADAPTIVE)))
    assert np.abs(palette - plain).mean() < 6
    assert shrink(encoded(picture.convert("1"))).shape == (3, 64, 64)


def test_orientation_is_not_applied() -> None:
    picture = photograph(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    turned = encoded(picture, "JPEG", quality=95, exif=exif)
    assert np.array_equal(shrink(turned), shrink(encoded(picture, "JPEG", quality=95)))


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_whole_image(name: str) -> None:
    with pytest.raises(Refused, match=r"^it "):
        shrink(DAMAGED[name])
