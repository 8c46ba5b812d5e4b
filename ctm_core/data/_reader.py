"""What a module of this folder provides to become a data set."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Images", "Reader"]


@dataclass(frozen=True)
class Images:
    """One split, ready to be written: labels whole, images in pieces.

    Attributes
    ----------
    shape
        (C, H, W) of every image.
    labels
        int64 of shape (N,), values 0 … classes - 1.
    chunks
        uint8 arrays of shape (n, C, H, W) whose lengths add up to N; consumed once, so a data set
        larger than memory can be streamed.
    source
        Where the images came from, for the manifest.
    source_files
        (name, SHA-256) of every file read.
    """

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    chunks: Iterable[NDArray[np.uint8]]
    source: str
    source_files: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Reader:
    """A data set by name.

    Attributes
    ----------
    name
        The name on the command line and in configs.
    splits
        The splits it has, the training split first.
    class_names
        One name per class, in the order of the labels.
    flip
        Whether a mirrored image is an image of the same set (used by augmentation).
    read
        ``read(split, source, downloads) -> Images``. ``source`` is the folder or URL the user
        gave, or None for the default; ``downloads`` is a folder for fetched files, which may not
        exist yet. A source that is missing or wrong raises `UserError` with the fix.
    """

    name: str
    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    flip: bool
    read: Callable[[str, str | None, Path], Images]
