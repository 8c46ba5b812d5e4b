"""What a module of this folder provides to become a data set."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        (name, SHA-256) of every file read. A folder of very many files is one entry: its name,
        and the SHA-256 of what ``sha256sum`` prints for its files in the order of their names.
    class_names
        One name a class in the order of the labels, where the source decides them; None: the
        reader's.
    preparation
        What the manifest tells of images that were computed rather than copied: recipe, library
        versions, files left out.
    scratch
        A folder that is removed once the manifest stands.
    """

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    chunks: Iterable[NDArray[np.uint8]]
    source: str
    source_files: tuple[tuple[str, str], ...]
    class_names: tuple[str, ...] | None = None
    preparation: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path | None = None


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
        One name per class, in the order of the labels; empty where the source decides them.
    flip
        Whether a mirrored image is an image of the same set (used by augmentation).
    read
        ``read(split, source, downloads, workers) -> Images``. ``source`` is the folder, file or
        URL the user gave, or None for the default; ``downloads`` is a folder for fetched and
        half-finished files, which may not exist yet; ``workers`` is how many processes it may
        start. A source that is missing or wrong raises `UserError` with the fix.
    shape, counts, classes
        (C, H, W) of its images, how many each split has, and classes, so that a plan can be made
        before anything is read; None and empty where only the source tells.
    """

    name: str
    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    flip: bool
    read: Callable[[str, str | None, Path, int], Images]
    shape: tuple[int, int, int] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    classes: int | None = None
