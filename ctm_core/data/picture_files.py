"""Pictures in files: a faithful conversion to 8 bits, or a refusal that names the file.

=================  ============================================================================
what a file holds  what is made of it
=================  ============================================================================
1 or 8 bits grey   one channel
16 bits grey       one channel, :math:`\\operatorname{round}(v / 257)`
RGB, palette       three channels; 16 bits per channel are read as their upper 8
CMYK               three channels, by Pillow's conversion
transparency       dropped where every pixel is opaque, else refused: what is behind is unknown
several frames     refused; of a JPEG file the first, the others are previews
=================  ============================================================================
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import printable, read_bytes

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
#: Pixels of the largest picture, and bytes of the largest file: far beyond any photograph.
LARGEST_PICTURE = 2**28
LARGEST_FILE = 2**28
#: A side may be this many times the other.
LARGEST_ASPECT = 64

log = logging.getLogger(__name__)


class Refused(ValueError):
    """Why a file is not taken as a picture; the text does not name the file."""


def decode(content: bytes, *, orient: bool = True) -> Image.Image:
    """The content of a PNG or JPEG file as a Pillow image of mode L or RGB.

    Parameters
    ----------
    orient
        Whether EXIF orientation is applied.

    Raises
    ------
    Refused
        If it is no whole picture of these formats, or cannot be converted faithfully.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, and of large pictures
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                _check_size(opened.size)
                frames = int(getattr(opened, "n_frames", 1))
                if frames > 1 and opened.format == "PNG":
                    raise Refused(f"it is animated ({frames} frames)")
                opened.load()
                image = _eight_bits(opened)
                return ImageOps.exif_transpose(image) if orient else image
    except (Refused, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Refused(f"it is not a {' or '.join(FORMATS)} file") from None
    except Image.DecompressionBombError:
        raise Refused("it has more pixels than a picture") from None
    except Exception as error:  # Pillow's readers raise whatever damage leads to
        # The text of an error may hold a memory address, which differs from run to run.
        reason = "it is truncated" if "truncated" in str(error) else "it is corrupt"
        raise Refused(f"{reason} ({type(error).__name__})") from None


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > LARGEST_PICTURE or max(size) > LARGEST_ASPECT * min(size):
        raise Refused(f"its size of {width} x {height} pixels is not that of a picture")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise Refused("it has an alpha channel that is not opaque; flatten it first")
        return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion clips them
        levels = np.asarray(image, dtype=np.int64)
        return Image.fromarray(((levels + 128) // 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("RGB", "P", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise Refused(f"its pixels are of the mode {image.mode}, which is not converted")


def read_picture(path: Path, *, orient: bool = True) -> NDArray[np.uint8]:
    """One picture file as uint8 (C, H, W), C = 1 for grey and 3 for colours.

    Raises
    ------
    UserError
        If the file is missing, or is refused by :func:`decode`; the sentence names it.
    """
    try:
        image = decode(read_bytes(path, LARGEST_FILE), orient=orient)
    except Refused as reason:
        raise UserError(f"{printable(str(path))} cannot be read as a picture: {reason}") from None
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


class Listing(NamedTuple):
    """What a folder holds, sub-folders included."""

    files: list[str]  #: pictures, as sorted paths below the folder
    left_out: list[str]  #: everything else

    def describe_left_out(self) -> str | None:
        """One sentence on what was left out, by kind; None if nothing was."""
        if not self.left_out:
            return None
        kinds = Counter(_kind(name) for name in self.left_out)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
        return f"{listed} (the first: {printable(self.left_out[0])})"


def _kind(name: str) -> str:
    base = Path(name).name
    if base.startswith("._"):
        return "macOS AppleDouble files (._*)"
    if base.startswith("."):
        return "hidden files"
    return f"*{printable(Path(base).suffix) or ' without suffix'} files"


def list_pictures(folder: Path, *, nested: bool = True) -> Listing:
    """The picture files of a folder, by suffix in any case.

    Hidden files, such as macOS's ``._NAME.png``, and other suffixes are left out and listed.

    Parameters
    ----------
    nested
        Whether files of sub-folders count; otherwise a sub-folder is listed like a file.
    """
    taken: list[str] = []
    other: list[str] = []
    for root, folders, files in os.walk(folder):
        names = files if nested else files + folders
        below = Path(root).relative_to(folder)
        folders[:] = sorted(name for name in folders if nested and not name.startswith("."))
        for name in names:
            place = str(below / name)
            fits = name.lower().endswith(SUFFIXES) and not name.startswith(".")
            (taken if fits else other).append(place)
    return Listing(sorted(taken), sorted(other))
