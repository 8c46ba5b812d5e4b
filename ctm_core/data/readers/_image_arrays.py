"""Own images in arrays: a .npy or .npz file, converted in one pass."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctm_core.config.datasets import Dataset
from ctm_core.data.picture_files import Refused
from ctm_core.data.readers._chunks import CHUNK
from ctm_core.data.readers._classes import SINGLE, check_counts, number_classes
from ctm_core.data.readers._reader import Images
from ctm_core.data.readers._split import (
    Survey,
    assemble,
    discarding,
    fit,
    image_shape,
    is_test,
    refuse_empty,
    refuse_pictures,
)
from ctm_core.runtime.arrays import Archive, load_array
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, identity, sha256_file

Blocks = Iterable[NDArray[Any]]


def read_arrays(path: Path, split: str, scratch: Path, section: Dataset) -> Images:
    """One split; its images are written to a file in ``scratch``.

    Raises
    ------
    UserError
        As ``read`` of ``images.py``.
    """
    if split == "test" and not section.test_fraction:
        raise UserError(
            f"{path} has no split test; set dataset.test_fraction of {section.name} to hold "
            "images out"
        )
    before, output = identity(path), scratch / "images"
    with discarding(scratch), _opened(path) as (shape, kind, blocks, archive):
        axes = _axes(shape, kind, path)
        labels, classes = _classify(archive, shape[0], path, section)
        kept = _convert_rows(blocks, axes, split, output, path, section)
        if identity(path) != before:
            raise UserError(f"{path} changed while it was read; run again when it is complete")
        if not kept.any():
            refuse_empty(split, section)
    images = np.memmap(output, np.uint8, "r", shape=(int(kept.sum()), *image_shape(section)))
    source_file = (path.name, sha256_file(path))
    return assemble(section, classes, labels[kept].tolist(), _cut(images), source_file, scratch)


def survey_arrays(path: Path, section: Dataset) -> Survey:
    """What a file of arrays holds, by its headers and labels."""
    with _opened(path) as (shape, kind, _, archive):
        axes = _axes(shape, kind, path)
        _, classes = _classify(archive, shape[0], path, section)
    rows, columns, channels = (*shape[1:], 1) if axes is None else [shape[1 + n] for n in axes]
    train = round(shape[0] * (1 - section.test_fraction))
    counts = {"train": train} | ({"test": shape[0] - train} if section.test_fraction else {})
    return Survey(tuple(classes), counts, (min(rows, columns),), channels)


def _classify(
    archive: Archive | None, count: int, path: Path, section: Dataset
) -> tuple[NDArray[np.int64], list[str]]:
    """The label of every image, and the classes."""
    labels, classes = np.zeros(count, np.int64), [*SINGLE]
    if archive is not None and "arr_1" in archive.names and section.classes == "names":
        labels = _labels(archive, count, path)
        classes = number_classes(labels.tolist(), path)
    check_counts(classes, labels.tolist(), path)
    return labels, classes


@contextmanager
def _opened(
    path: Path,
) -> Iterator[tuple[tuple[int, ...], np.dtype[Any], Blocks, Archive | None]]:
    """Shape, type and blocks of the images, and the archive that holds them if one does."""
    if path.suffix.lower() == ".npy":
        array = load_array(path)
        yield array.shape, array.dtype, _cut(array), None
        return
    with Archive(path) as archive:
        if "arr_0" not in archive.names:
            raise UserError(f"{path} has no arr_0, the images; save them under this name")
        yield *archive.header("arr_0"), archive.rows("arr_0", CHUNK), archive


def _cut(array: NDArray[Any]) -> Blocks:
    """Of a memory-mapped array, pieces that fit into memory."""
    return (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))


def _axes(shape: tuple[int, ...], kind: Any, path: Path) -> tuple[int, ...] | None:
    """How an image's axes become (H, W, C); None if it has no channels."""
    if kind == np.uint8 and len(shape) in (3, 4) and math.prod(shape):
        if len(shape) == 3:
            return None
        if shape[3] in (1, 3):
            return (0, 1, 2)
        if shape[1] in (1, 3):
            return (1, 2, 0)
    raise UserError(
        f"{path}: expected uint8 images of shape (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or "
        f"3, but got {kind} of shape {shape}"
    )


def _labels(archive: Archive, count: int, path: Path) -> NDArray[np.int64]:
    """One label per image."""
    shape, kind = archive.header("arr_1")
    if shape == (count,) and kind.kind in "iu":
        labels = np.concatenate([*archive.rows("arr_1", CHUNK)]).astype(np.int64)
        if labels.min() >= 0:
            return labels
    raise UserError(f"{path}: arr_1 is not one label per image, a number from 0; correct it")


def _convert_rows(
    rows: Iterable[NDArray[np.uint8]],
    axes: tuple[int, ...] | None,
    split: str,
    output: Path,
    path: Path,
    section: Dataset,
) -> NDArray[np.bool_]:
    """Write the images of a split one after the other; True for each row that is in it."""
    kept: list[bool] = []
    size: tuple[int, int] | None = None
    with atomic_write(output) as temporary, open(temporary, "wb") as file:
        for number, row in enumerate(itertools.chain.from_iterable(rows)):
            digest = hashlib.sha256(row.tobytes()).hexdigest()
            kept.append(is_test(digest, section) == (split == "test"))
            if not kept[-1]:
                continue
            pixels = np.ascontiguousarray(row if axes is None else row.transpose(axes))
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
            size = size or image.size
            try:
                file.write(fit(image, section, size).data)
            except Refused as reason:
                refuse_pictures(section, 1, number + 1, f"number {number} of {path}", f"{reason}")
    return np.array(kept, bool)
