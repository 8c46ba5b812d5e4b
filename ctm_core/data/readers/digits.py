"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, part of the package.

A test set of the UCI collection (Alpaydin & Kaynak, 1998): 32×32 bitmaps, counted in blocks of
4×4, so a pixel is an integer 0 … 16. Levels become round(255 v / 16). Digits are not mirrored.
"""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from ctm_core.data.readers._reader import Images
from ctm_core.runtime import extras
from ctm_core.runtime.files import sha256_file

TRAITS = {
    "splits": ("train",),
    "counts": {"train": 1797},
    "shape": (1, 8, 8),
    "classes": 10,
    "class_names": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "flip": False,
    "source": "none",
}


def read(split: str, source: str | None, downloads: Path, workers: int) -> Images:
    """The one split, from the installed package."""
    bunch = extras.load("sklearn.datasets").load_digits()
    levels = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    with as_file(files("sklearn.datasets") / "data" / "digits.csv.gz") as path:
        digest = sha256_file(path)
    return Images(
        shape=(1, 8, 8),
        labels=bunch.target.astype(np.int64),
        chunks=[levels],
        source="scikit-learn: load_digits",
        source_files=(("digits.csv.gz", digest),),
    )
