"""CIFAR-10: 50,000 + 10,000 colour images of ten classes, 32×32 (Krizhevsky, 2009).

Read from the published python version: the archive ``cifar-10-python.tar.gz``, or the folder
``cifar-10-batches-py`` that it unpacks to. Six files, the batches, hold 10,000 images each as a
pickled dictionary: ``data``, uint8 of shape (10000, 3072), 1,024 red, then green, then blue levels
row by row, and ``labels``, a list. Mirrored images count as images of the set.

A pickle is a program. Here it is run only after the MD5 of its bytes has matched the published
one, and by an interpreter that knows three names, all of them replaced by functions of this module
that build an array of bytes; any other name is refused.
"""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctm_core.data import assets
from ctm_core.data.readers._download import fetched, is_url
from ctm_core.data.readers._reader import Images
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.runtime.untrusted import open_regular, read_bytes

TRAITS: dict[str, Any] = {
    "splits": ("train", "test"),
    "counts": {"train": 50_000, "test": 10_000},
    "shape": (3, 32, 32),
    "classes": 10,
    "class_names": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "flip": True,
    "assets": ("cifar10",),
}

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
SHAPE = TRAITS["shape"]
#: Bytes; far above a batch's 31 MB. Larger members (decompression bombs) are not read.
LARGEST = 1 << 26
#: The archive has 170 MB.
LARGEST_ARCHIVE = 1 << 28

#: Per split the batches in their order, with their MD5.
BATCHES = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}
REMEDY = (
    f"give --source {URL} to download it, or fetch that file and put it into the assets folder or "
    "name it, or the folder it unpacks to, with --source"
)


def parse_batch(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode one batch; nothing it names is imported or called.

    Returns
    -------
    (images, labels)
        uint8 of shape (n, 3, 32, 32) and int64 of shape (n,), labels 0 … 9.

    Raises
    ------
    ValueError
        If it is not a pickle of that form; the text says what is wrong.
    """
    try:
        batch = _Decoder(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # arbitrary bytes make the interpreter fail in any way
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    if not isinstance(batch, dict):
        raise ValueError("not a dictionary")
    images, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise ValueError("`data` is not a table of bytes")
    if images.shape[1] != np.prod(SHAPE):
        raise ValueError(f"`data` has {images.shape[1]} bytes per image, expected 3072")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise ValueError("`labels` is not a list of one number per image")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError("a label is not 0 … 9")
    return images.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)


def read(split: str, source: str | None, downloads: Path, workers: int) -> Images:
    """One split from the archive, the folder or a URL; by default from the assets folder.

    Raises
    ------
    UserError
        If a file, folder or URL is missing, or a file is truncated or not the published one.
    """
    opened: AbstractContextManager[Path] = (
        fetched(
            source, downloads / ARCHIVE, title="CIFAR-10", remedy=REMEDY, largest=LARGEST_ARCHIVE
        )
        if is_url(source)
        else nullcontext(_locate(source))
    )
    with opened as place:
        contents = _from_archive if place.is_file() else _from_folder
        arrays = {
            name: _decoded(place, name, data, BATCHES[split][name])
            for name, data in contents(place, BATCHES[split])
        }
        if missing := [name for name in BATCHES[split] if name not in arrays]:
            raise UserError(f"CIFAR-10: {place} has no {missing[0]}; {REMEDY}")
    files = [place] if place.is_file() else [place / name for name in BATCHES[split]]
    ordered = [arrays[name] for name in BATCHES[split]]
    return Images(
        shape=SHAPE,
        labels=np.concatenate([labels for _, labels in ordered]),
        chunks=[images for images, _ in ordered],
        source="CIFAR-10",
        source_files=tuple((path.name, sha256_file(path)) for path in files),
    )


def _locate(source: str | None) -> Path:
    """The archive, or the folder that holds the batches."""
    if source is None:
        base = assets.assets_folder()
        if not any((base / name).exists() for name in (FOLDER, ARCHIVE)):
            raise UserError(f"CIFAR-10: neither {base / ARCHIVE} nor {FOLDER} exists; {REMEDY}")
    else:
        base = Path(source)
    if base.is_file():
        return base
    if not base.is_dir():
        raise UserError(f"CIFAR-10: {base} does not exist; {REMEDY}")
    for folder in (base, base / FOLDER):
        if any((folder / name).is_file() for split in BATCHES.values() for name in split):
            return folder
    if (base / ARCHIVE).is_file():
        return base / ARCHIVE
    raise UserError(f"CIFAR-10: {base} holds neither {ARCHIVE} nor the batches; {REMEDY}")


def _from_folder(folder: Path, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    for name in wanted:
        if (folder / name).is_file():
            yield name, read_bytes(folder / name, LARGEST)


def _from_archive(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """The wanted members, in the archive's order, unpacked in memory."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST_ARCHIVE:
            raise UserError(f"{path} is larger than CIFAR-10's archive; replace it: {REMEDY}")
        _check_md5(hashlib.file_digest(file, _md5).hexdigest(), ARCHIVE_MD5, f"{path}", "archive")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r|gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in wanted and member.isfile() and member.size <= LARGEST:
                        content = archive.extractfile(member)
                        assert content is not None
                        yield name, content.read()
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise UserError(
                f"{path} is not a complete tar.gz archive ({error}); {REMEDY}"
            ) from None


def _decoded(
    place: Path, name: str, data: bytes, md5: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    _check_md5(_md5(data).hexdigest(), md5, f"{place}: {name}", "batch")
    try:
        return parse_batch(data)
    except ValueError as error:
        raise UserError(
            f"{place}: {name} is not a batch of CIFAR-10 ({error}); {REMEDY}"
        ) from None


def _check_md5(actual: str, expected: str, file: str, kind: str) -> None:
    if actual != expected:
        raise UserError(
            f"{file} is truncated or is not CIFAR-10's {kind}: its MD5 is {actual}, expected "
            f"{expected}; replace it: {REMEDY}"
        )


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


class _Decoder(pickle.Unpickler):
    """Runs a pickle in which every name but those of numpy's arrays is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _byte_type,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]


def _empty_array(kind: None, shape: tuple[int, ...], code: bytes) -> NDArray[np.uint8]:
    # The pickle then gives it shape and content, by the array's own method for that.
    return np.empty(0, dtype=np.uint8)


def _byte_type(code: bytes, align: int = 0, copy: int = 0) -> np.dtype[np.uint8]:
    if code != b"u1":
        raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of bytes")
    return np.dtype(np.uint8, copy=True)  # a new one: the pickle then sets its state
