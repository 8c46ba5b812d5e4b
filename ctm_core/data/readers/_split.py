"""One split of own images, from files or arrays: its members, their pixels, and the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctm_core.config.datasets import Dataset
from ctm_core.data.picture_files import Refused, decode
from ctm_core.data.readers._reader import Images
from ctm_core.data.readers._shrink import decoder, square
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import remove_tree
from ctm_core.runtime.untrusted import printable


class Survey(NamedTuple):
    """What a source holds before it is prepared."""

    classes: tuple[str, ...]
    counts: Mapping[str, int]  #: images by split
    sides: tuple[int, ...]  #: shorter sides of the images that were looked at
    channels: int  #: 1 if all of those are grey


def is_test(digest: str, section: Dataset) -> bool:
    """Whether content with this SHA-256 is held out."""
    return int(digest[:8], 16) < section.test_fraction * 2**32


def convert(
    content: bytes, *, section: Dataset, size: tuple[int, int] | None
) -> NDArray[np.uint8]:
    """The content of a PNG or JPEG file as uint8 (C, side, side); raises :class:`Refused`."""
    return fit(decode(content), section, size)


def fit(image: Image.Image, section: Dataset, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """An image as uint8 (C, side, side); with ``crop: none`` refused unless of ``size``."""
    assert section.resolution is not None
    if section.crop == "none" and (image.width != image.height or size not in (None, image.size)):
        wanted = "a square" if size is None else f"{size[0]} x {size[1]} as the first"
        raise Refused(
            f"it has {image.width} x {image.height} pixels, not {wanted}; `crop: centre` takes "
            "any size"
        )
    levels = image.convert("L" if section.channels == 1 else "RGB")
    pixels = np.asarray(square(levels, section.resolution, section.filter))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def image_shape(section: Dataset) -> tuple[int, int, int]:
    """(C, H, W) of every image."""
    assert section.shape is not None
    return section.shape


def describe_recipe(section: Dataset) -> str:
    """What decides the pixels besides the source and the section's other settings."""
    return f"{section.filter} to {section.resolution}; {decoder()}"


def assemble(
    section: Dataset,
    classes: Sequence[str],
    labels: Sequence[int],
    chunks: Iterable[NDArray[np.uint8]],
    source_file: tuple[str, str],
    scratch: Path,
) -> Images:
    """The split as a reader returns it; ``source_file`` is the source's name and SHA-256."""
    counts = Counter(labels)
    return Images(
        shape=image_shape(section),
        labels=np.array(labels, dtype=np.int64),
        chunks=chunks,
        source=f"own images: {source_file[0]}",
        source_files=(source_file,),
        class_names=tuple(classes),
        preparation={
            "settings": section.settings,
            "recipe": describe_recipe(section),
            "counts": [counts[number] for number in range(len(classes))],
        },
        scratch=scratch,
    )


@contextmanager
def discarding(scratch: Path) -> Iterator[None]:
    """Remove what is half made of a source that is refused."""
    try:
        yield
    except UserError:
        remove_tree(scratch)
        with suppress(OSError):  # other files may be there
            scratch.parent.rmdir()
        raise


def refuse_pictures(section: Dataset, bad: int, total: int, first: str, reason: str) -> NoReturn:
    raise UserError(
        f"{section.name}: {bad:,} of {total:,} images cannot be taken; the first is "
        f"{printable(first)}: {reason}; correct or remove it"
    )


def refuse_empty(split: str, section: Dataset) -> NoReturn:
    raise UserError(
        f"{section.name}: no image falls into {split}; change dataset.test_fraction, which is "
        f"{section.test_fraction}"
    )
