"""Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28×28 (Xiao, Rasul & Vollgraf, 2017).

The four IDX files are read from a folder (plain or ``.gz``) or fetched from a URL. What counts is
their content: the MD5 of the uncompressed bytes must be the published one, however the files were
packed. The images stay 28×28.
"""

import gzip
import hashlib
import io
import struct
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctm_core.data.readers._download import fetched, is_url
from ctm_core.data.readers._reader import Images
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_bytes
from ctm_core.runtime.untrusted import read_bytes

TRAITS = {
    "splits": ("train", "test"),
    "counts": {"train": 60_000, "test": 10_000},
    "shape": (1, 28, 28),
    "classes": 10,
    "class_names": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "flip": False,
    "classifier": {"steps": 1500, "learning_rate": 6e-3},
}

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

#: Per split the file names of images and labels, with the MD5 of their uncompressed bytes.
FILES = {
    "train": (
        ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
        ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
}
#: Bytes; above the 47 MB of the longest file.
LARGEST = 1 << 26
REMEDY = (
    f"install the Debian package dataset-fashion-mnist, give --source {MIRROR} to download it, "
    "or put the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz from there into a folder and name it "
    "with --source"
)


def parse_idx(data: bytes) -> NDArray[np.uint8]:
    """Decode an IDX file of unsigned bytes.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, the sizes
    as big-endian 32-bit integers, then the values, last dimension fastest.

    Raises
    ------
    ValueError
        If header or length do not fit.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX header of unsigned bytes")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError("the IDX header is truncated")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"expected shape {shape}, but got {len(data) - start} bytes of data")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _file(source: str | None, name: str, downloads: Path) -> AbstractContextManager[Path]:
    if is_url(source):
        url, path = f"{source.rstrip('/')}/{name}.gz", downloads / f"{name}.gz"
        return fetched(url, path, title="Fashion-MNIST", remedy=REMEDY, largest=LARGEST)
    folder = DEBIAN_FOLDER if source is None else Path(source)
    if not folder.is_dir():
        raise UserError(f"Fashion-MNIST: the folder {folder} does not exist; {REMEDY}")
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return nullcontext(path)
    raise UserError(f"Fashion-MNIST: neither {folder / name}.gz nor {name} exists; {REMEDY}")


def _content(packed: bytes, path: Path, md5: str) -> NDArray[np.uint8]:
    data = packed
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(packed)) as file:
                data = file.read(LARGEST + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path} is truncated or not a gzip file ({error}); replace it: {REMEDY}"
            ) from None
    if len(data) > LARGEST:
        raise UserError(
            f"{path} unpacks to more than any file of Fashion-MNIST; replace it: {REMEDY}"
        )
    actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise UserError(
            f"{path} is not Fashion-MNIST's file: the MD5 of its uncompressed bytes is {actual}, "
            f"expected {md5}; replace it: {REMEDY}"
        )
    return parse_idx(data)


def read(split: str, source: str | None, downloads: Path, workers: int) -> Images:
    """One split from a folder, a URL, or (by default) where the Debian package puts it.

    Raises
    ------
    UserError
        If a folder, file or URL is missing, or a file is truncated or not the published one.
    """
    arrays: list[NDArray[np.uint8]] = []
    hashes: list[tuple[str, str]] = []
    for name, md5 in FILES[split]:
        with _file(source, name, downloads) as path:
            packed = read_bytes(path, LARGEST)
            arrays.append(_content(packed, path, md5))
            hashes.append((path.name, sha256_bytes(packed)))
    images, labels = arrays
    return Images(
        shape=(1, 28, 28),
        labels=labels.astype(np.int64),
        chunks=[images[:, None]],
        source="Fashion-MNIST",
        source_files=tuple(hashes),
    )
