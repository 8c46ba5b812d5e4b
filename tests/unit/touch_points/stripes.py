"""A toy data set: 8x8 stripes of ten widths."""

from pathlib import Path

import numpy as np

from ctm_core.data.readers._reader import Images

TRAITS = {
    "splits": ("train",),
    "counts": {"train": 32},
    "shape": (1, 8, 8),
    "classes": 10,
    "flip": True,
    "source": "none",
    "class_names": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
}


def read(split: str, source: str | None, downloads: Path, workers: int) -> Images:
    """Image i has stripes of width i mod 10 + 1."""
    labels = np.arange(32) % 10
    columns = np.arange(8) // (labels[:, None] + 1) % 2 * 255
    images = np.broadcast_to(columns[:, None, None].astype(np.uint8), (32, 1, 8, 8))
    return Images(shape=(1, 8, 8), labels=labels, chunks=[images], source="drawn", source_files=())
