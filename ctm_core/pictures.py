"""Samples as files: a uint8 array, or a grid as PNG."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from PIL import Image

from ctm_core.files import atomic_write

__all__ = ["grid", "save_array", "save_grid"]


def grid(images: torch.Tensor, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Tile uint8 images (N, C, H, W) into one array (rows*H, columns*W, 3), enlarged if small."""
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
    with atomic_write(path) as temporary:
        Image.fromarray(grid(images, columns)).save(temporary, format="PNG")


def save_array(path: str | os.PathLike[str], images: torch.Tensor) -> None:
    """Write uint8 images (N, C, H, W) as a .npy file, atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images.numpy(), allow_pickle=False)
