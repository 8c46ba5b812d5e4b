"""NumPy's .npy files, mapped into memory once their header has been checked."""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import PathLike, open_regular, printable

__all__ = ["load_array"]


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
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, kind = read(file)
    except Exception as error:  # NumPy evaluates the header; what that raises has no end
        reason = printable(" ".join(str(error).split()), 120)
        raise UserError(f"{path} is not a valid .npy file ({reason})") from None
    if kind.hasobject:
        raise UserError(f"{path} holds Python objects, which are not loaded")
    if any(n < 0 for n in shape):
        raise UserError(f"{path} is not a valid .npy file (its shape is {shape})")
    return shape, fortran, kind
