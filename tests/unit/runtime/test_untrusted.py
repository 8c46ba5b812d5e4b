"""Files and text of others: pipes, devices, depth, size, escapes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import (
    open_regular,
    parse_json,
    printable,
    read_bytes,
)


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "file") == read_bytes(tmp_path / "link") == b"abc"


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
def test_what_is_not_a_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"x is {kind}, not a file"):
        open_regular(path)


@pytest.mark.parametrize("path", ["gone", "nul\0byte"])
def test_a_path_that_leads_nowhere(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is missing|cannot be a path") as caught:
        read_bytes(f"{tmp_path}/{path}")
    assert str(caught.value).isprintable()


def test_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_bytes(path, 2**20)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 5000,
        "NaN",
        "-Infinity",
        "{",
        b"\xff\xfe",
        "\x1b[31m",
    ],
)
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(UserError, match=r"f\.json is not valid JSON") as caught:
        parse_json(text, "f.json")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null]}', "f") == {"a": [1, 2.5, None]}


# -- text --------------------------------------------------------------------------------------


def test_escapes_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mb\nc\r\u202e\x9b") == "a\\x1b[31mb\\nc\\r\\u202e\\x9b"
    assert printable("γ-Ω, ü 画") == "γ-Ω, ü 画"
    assert printable("x" * 600) == "x" * 500 + "…"
