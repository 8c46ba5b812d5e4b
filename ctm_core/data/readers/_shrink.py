"""A photograph to a small square: the recipe published with guided diffusion.

To RGB; while the shorter side is at least twice the target, halve both sides (rounded down) by box
filter; resize by bicubic filter until the shorter side is the target; keep the central square
(Dhariwal & Nichol, 2021). The filters are Pillow's, antialiased, each step rounded to 8 bits. EXIF
orientation is not applied. An image smaller than the target is enlarged by the same bicubic step.
"""

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from ctm_core.data.picture_files import decode

FILTERS = {
    "box-bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}


def shrink(content: bytes, side: int = 64) -> NDArray[np.uint8]:
    """A JPEG or PNG file's content as uint8 of shape (3, side, side).

    Raises
    ------
    Refused
        As :func:`ctm_core.data.picture_files.decode`.
    """
    image = square(decode(content, orient=False).convert("RGB"), side)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def square(image: Image.Image, side: int, name: str = "box-bicubic") -> Image.Image:
    """The central square of an image whose shorter side was resized to ``side``."""
    while name == "box-bicubic" and min(image.size) >= 2 * side:
        width, height = image.size
        image = image.resize((width // 2, height // 2), resample=Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    image = image.resize((width, height), resample=FILTERS[name])
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decoder() -> str:
    """What decides the pixels besides the recipe: versions of Pillow and its JPEG library."""
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__}, {jpeg}"
