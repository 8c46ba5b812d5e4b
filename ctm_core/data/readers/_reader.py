"""What a module of this folder provides to become a data set.

``TRAITS``
    A dictionary of literals, which the configuration reads without importing the module:
    the fields of :class:`ctm_core.config.datasets.DatasetTraits`.
``read(split, source, downloads, workers) -> Images``
    Reads one of the splits. ``source`` is the folder, file or URL that the user gave, or None;
    ``downloads`` is a folder for fetched and half-finished files, which may not exist yet;
    ``workers`` is how many processes it may start. A source that is missing or wrong raises
    :class:`UserError` with the fix.

The module's name, with ``-`` for ``_``, is the data set's name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
        What the images were made from, for the manifest; not where it lies, which differs between
        machines that share everything else.
    source_files
        (name, SHA-256) of every file read. A folder of very many files is one entry: its name,
        and the SHA-256 of what ``sha256sum`` prints for its files in the order of their names.
    class_names
        One name per class in the order of the labels, where the source decides them; None: those
        of ``TRAITS``.
    preparation
        For the manifest, how images were computed if they were not copied: recipe, library
        versions, files left out.
    scratch
        A folder that is removed once the manifest is written.
    """

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    chunks: Iterable[NDArray[np.uint8]]
    source: str
    source_files: tuple[tuple[str, str], ...]
    class_names: tuple[str, ...] | None = None
    preparation: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path | None = None
