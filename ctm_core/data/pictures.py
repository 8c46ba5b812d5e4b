"""Samples as a grid, written as PNG."""

from __future__ import annotations

import io
import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ctm_core.runtime.files import write_bytes


def grid(
    images: torch.Tensor, columns: int | None = None, scale: int | None = None
) -> NDArray[np.uint8]:
    """Tile images row by row into one picture, enlarged if they are small.

    Parameters
    ----------
    images
        uint8 (N, C, H, W), C = 1 or 3, on the CPU.
    columns
        Default: as near to a square as can be.
    scale
        Pixels a side of each pixel; default: tiles of at least about 48 pixels.

    Returns
    -------
    uint8 array (rows * H * scale, columns * W * scale, 3); places without an image are black.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = scale or max(1, 48 // height)
    canvas = np.zeros((rows * columns, channels, height, width), np.uint8)
    canvas[:n] = images.numpy()
    tiles = canvas.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * height, columns * width, channels)
    picture = np.repeat(picture, 3, axis=2) if channels == 1 else picture
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def save_grid(
    path: str | os.PathLike[str], images: torch.Tensor, columns: int | None = None
) -> None:
    """Write a grid of uint8 images (N, C, H, W) as PNG, atomically."""
    encoded = io.BytesIO()
    Image.fromarray(grid(images, columns)).save(encoded, format="PNG")
    write_bytes(path, encoded.getvalue())
