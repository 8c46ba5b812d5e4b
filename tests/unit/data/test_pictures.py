"""Grids show every sample in its place."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctm_core.data import pictures


def samples(n: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    """Image i has level i + 1 everywhere, channel c ten more."""
    levels = torch.arange(1, n + 1).view(n, 1, 1, 1) + 10 * torch.arange(channels).view(
        1, -1, 1, 1
    )
    return levels.expand(n, channels, size, size).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_run_row_by_row(channels: int) -> None:
    made = pictures.grid(samples(5, channels), scale=2)
    assert made.dtype == np.uint8
    assert made.shape == (2 * 16, 3 * 16, 3)  # 5 images: 3 columns, 2 rows
    for i in range(6):
        tile = made[(i // 3) * 16 :, (i % 3) * 16 :][:16, :16]
        for channel in range(3):
            level = i + 1 + (10 * channel if channels == 3 else 0)
            assert (tile[..., channel] == (level if i < 5 else 0)).all()


def test_columns_and_scale() -> None:
    assert pictures.grid(samples(4), columns=4).shape == (48, 192, 3)  # 8 pixels six times
    assert pictures.grid(samples(1, 3, 64)).shape == (64, 64, 3)


def test_a_tile_is_not_turned() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    assert (pictures.grid(image, scale=1)[..., 0] == image[0, 0].numpy()).all()


def test_files(tmp_path: Path) -> None:
    images = samples(3)
    pictures.save_grid(tmp_path / "a" / "grid.png", images)
    with Image.open(tmp_path / "a" / "grid.png") as picture:
        assert picture.format == "PNG"
        assert (np.asarray(picture) == pictures.grid(images)).all()
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        pictures.save_grid(tmp_path / "grid.png", samples(1))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
