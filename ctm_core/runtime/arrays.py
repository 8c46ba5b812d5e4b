"""NumPy's .npy and .npz files: mapped or unpacked once headers and sizes have been checked."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write
from ctm_core.runtime.untrusted import PathLike, open_regular, printable

#: Bytes of an archive's table of contents.
LARGEST_DIRECTORY = 2**20
#: An array of an archive that is larger than this many bytes is not smaller than a share of it.
SMALL = 2**26
LARGEST_COMPRESSION = 200


def load_array(path: PathLike, *, dtype: Any = None, shape: tuple[int | None, ...] = ()) -> Any:
    """A .npy file as a read-only memory map, after its header and size were checked.

    Parameters
    ----------
    dtype
        What it must be; None: any type without Python objects.
    shape
        Lengths it must have, None for any; empty: any shape.

    Returns
    -------
    numpy.ndarray
        Memory-mapped, so that only what is used is read.

    Raises
    ------
    UserError
        If the file is missing, damaged, shorter or longer than its header says, or another array.
    """
    with open_regular(path) as file:
        found, fortran, kind = _header(file, path)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    if start + math.prod(found) * kind.itemsize != size:
        raise UserError(
            f"{path} is corrupt: its header announces {kind} of shape {found}, but the file has "
            f"{size:,} bytes"
        )
    fits = len(shape) == len(found) and all(
        n in (None, m) for n, m in zip(shape, found, strict=True)
    )
    if (dtype is not None and kind != np.dtype(dtype)) or (shape and not fits):
        wanted = f"{np.dtype(dtype)} " if dtype is not None else ""
        raise UserError(
            f"{path}: expected {wanted}of shape {shape or 'any'}, but got {kind} of shape {found}"
        )
    order: Any = "F" if fortran else "C"
    if not math.prod(found):
        return np.zeros(found, kind)
    array: NDArray[Any] = np.memmap(path, kind, "r", offset=start, shape=found, order=order)
    return array


def _header(file: BinaryIO, path: PathLike) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # the others are for headers longer than 64 KiB
            raise ValueError(f"version {version}")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy evaluates the header; what that raises has no end
        reason = printable(" ".join(str(error).split()), 120)
        raise UserError(f"{path} is not a valid .npy file ({reason})") from None
    if kind.hasobject:
        raise UserError(f"{path} holds Python objects, which are not loaded")
    if any(n < 0 for n in shape):
        raise UserError(f"{path} is not a valid .npy file (its shape is {shape})")
    return shape, fortran, kind


class Archive:
    """The arrays of an .npz file, each checked by its header and sizes before it is unpacked.

    Used as a context manager; its methods raise as it does.

    Raises
    ------
    UserError
        If the file is missing or damaged, or an array cannot be what its header says.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path
        file = _Bounded(open_regular(path).detach())
        try:
            with self._refusing():
                self._archive = zipfile.ZipFile(file)
        except BaseException:
            file.close()
            raise
        file.largest = None
        self._file = file
        self._members = {
            member.filename.removesuffix(".npy"): member for member in self._archive.infolist()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()

    @property
    def names(self) -> list[str]:
        """Of the arrays, in the file's order."""
        return list(self._members)

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an array."""
        file, shape, kind = self._open(name)
        file.close()
        return shape, kind

    def rows(self, name: str, count: int) -> Iterator[NDArray[Any]]:
        """An array in pieces of ``count`` rows, unpacked one after the other; read-only."""
        file, shape, kind = self._open(name)
        width = math.prod(shape[1:]) * kind.itemsize
        with file:
            for start in range(0, shape[0], count):
                size = min(count, shape[0] - start)
                with self._refusing():
                    content = file.read(size * width)
                    values = np.frombuffer(content, kind).reshape(size, *shape[1:])
                yield values

    def _open(self, name: str) -> tuple[BinaryIO, tuple[int, ...], np.dtype[Any]]:
        place = f"{printable(name)} of {self.path}"
        with self._refusing():
            member = self._members[name]
            size = member.file_size
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("unknown compression")
            if size > max(SMALL, LARGEST_COMPRESSION * member.compress_size):
                raise UserError(
                    f"{place} unpacks from {member.compress_size:,} to {size:,} bytes, which is "
                    "refused; save the array without compression if it is real"
                )
            file: Any = self._archive.open(member)
        try:
            shape, fortran, kind = _header(file, place)
            if not shape or file.tell() + math.prod(shape) * kind.itemsize != size:
                raise UserError(
                    f"{place} is corrupt: its header announces {kind} of shape {shape}, but it "
                    f"has {size:,} bytes"
                )
            if fortran and len(shape) > 1:
                raise UserError(
                    f"{place} is in Fortran order; save it as numpy.ascontiguousarray gives it"
                )
        except BaseException:
            file.close()
            raise
        return file, shape, kind

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # what zipfile and zlib raise of damage has no end
            if isinstance(error, OSError) and error.errno:
                raise
            reason = printable(" ".join(str(error).split()), 120)
            raise UserError(f"{self.path} is not a valid .npz file ({reason})") from None


class _Bounded(io.BufferedReader):
    """Refuses to read a table of contents of gigabytes, which zipfile takes as one piece."""

    largest: int | None = LARGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.largest is not None and size is not None and size > self.largest:
            raise ValueError("its table of contents is too long")
        return super().read(size)


def save_array(path: PathLike, array: NDArray[Any]) -> None:
    """Write a .npy file, atomically: the bytes of :func:`numpy.save`, in C order.

    A full disk raises its error number, which that of ``numpy.save`` lacks.
    """
    whole = np.ascontiguousarray(array)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        write_header(file, whole.shape, whole.dtype)
        file.write(whole.data)


def write_header(file: BinaryIO, shape: tuple[int, ...], kind: Any) -> None:
    """Write the header of a .npy file in C order, after which its bytes follow."""
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, described)
