"""Arrays in .npy files: mapped, or refused by what their header says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from ctm_core.runtime.arrays import load_array
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
