"""Arrays in .npy files: mapped, or refused by what their header says."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctm_core.runtime.arrays import Archive, load_array, save_array
from ctm_core.runtime.errors import UserError


def saved(array: object) -> bytes:
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


@pytest.mark.parametrize(
    "array", [np.arange(12).reshape(3, 4), np.asfortranarray(np.eye(3)), np.zeros((0, 2))]
)
def test_an_array_is_mapped(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(saved(array))
    made = load_array(path, dtype=array.dtype, shape=(None, array.shape[1]))
    assert np.array_equal(made, array) and made.dtype == array.dtype


HEADER = saved(np.zeros((4, 4)))
HOSTILE = {
    "empty": b"",
    "short": HEADER[:-1],
    "long": HEADER + b"\0",
    "no header": HEADER[:20],
    "bracket": HEADER.replace(b"(4, 4)", b"(4, 4["),
    "huge": HEADER.replace(b"(4, 4)", b"(9**9,"),
    "negative": HEADER.replace(b"(4, 4)", b"(-4,4)"),
    "call": HEADER.replace(b"(4, 4)", b"exit()"),
    "objects": saved(np.array([{}], dtype=object)),
    "version": HEADER[:6] + b"\x09" + HEADER[7:],
    "header of gigabytes": HEADER[:6] + b"\2\0\xff\xff\xff\xff" + HEADER[10:],
    "type": HEADER.replace(b"<f8", b"<q9"),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_array_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=r"a\.npy (is|holds)"):
        load_array(path)


def test_another_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(saved(np.zeros((2, 3))))
    with pytest.raises(UserError, match=r"expected uint8 of .*got float64 of shape \(2, 3\)"):
        load_array(path, dtype="u1", shape=(None, 3))
    with pytest.raises(UserError, match=r"expected of shape \(None, 4\)"):
        load_array(path, shape=(None, 4))


@pytest.mark.parametrize("array", [np.arange(12)[::2], np.eye(3).T, np.ones((2, 0, 3), "u1")])
def test_arrays_are_written_as_numpy_writes_them(array: np.ndarray, tmp_path: Path) -> None:
    save_array(tmp_path / "a.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == saved(np.ascontiguousarray(array))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_read_in_pieces(save: Callable[..., None], tmp_path: Path) -> None:
    arrays = {"a": np.arange(30, dtype="u1").reshape(10, 3), "b": np.eye(4)}
    save(tmp_path / "a.npz", **arrays)
    with Archive(tmp_path / "a.npz") as archive:
        assert archive.names == ["a", "b"]
        assert archive.header("a") == ((10, 3), np.dtype("u1"))
        pieces = list(archive.rows("a", 4))
        assert [len(piece) for piece in pieces] == [4, 4, 2]
        assert np.array_equal(np.concatenate(pieces), arrays["a"])
        assert np.array_equal(next(archive.rows("b", 4)), arrays["b"])


def packed(content: bytes, path: Path, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a.npy", content)
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def bomb(path: Path) -> Path:
    """Two gigabytes of zeros."""
    header = saved(np.zeros((2**31, 1), "u1")[:1]).replace(
        b"(1, 1), }         ", b"(2147483648, 1), }"
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(header)
        for _ in range(128):
            file.write(bytes(2**24))
    return path


def long_directory(path: Path) -> Path:
    """A table of contents of four gigabytes, all of it a hole in the file."""
    with open(path, "wb") as file:
        file.write(b"PK\3\4")
        file.truncate(2**32)
        file.seek(2**32)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 2**32 - 64, 60, 0))
    return path


ARCHIVES: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_bytes(b"PK\3\4 no archive"),
    "pipe": lambda p: os.mkfifo(p),
    "folder": lambda p: p.mkdir(),
    "bomb": bomb,
    "long directory": long_directory,
    "lzma": lambda p: packed(HEADER, p, zipfile.ZIP_LZMA),
    "encrypted": lambda p: edited(
        packed(HEADER, p), b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"
    ),
    "flipped": lambda p: edited(
        packed(HEADER, p, zipfile.ZIP_STORED), HEADER[-40:], b"\1" + HEADER[-39:]
    ),
    "fortran": lambda p: packed(saved(np.asfortranarray(np.ones((2, 3)))), p),
} | {name: lambda p, c=content: packed(c, p) for name, content in HOSTILE.items()}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    ARCHIVES[name](path)
    with (
        pytest.raises(UserError, match=r"a\.npz (is|holds|unpacks)") as caught,
        Archive(path) as archive,
    ):
        list(archive.rows("a", 2))
    assert str(caught.value).isprintable()
