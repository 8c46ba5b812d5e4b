"""Files and text of others: pipes, devices, depth, size, escapes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import (
    csv_cell,
    file_name,
    open_regular,
    parse_json,
    printable,
    read_bytes,
    table_cell,
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
        '{"half of a pair": "\\ud800"}',
    ],
)
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(UserError, match=r"f\.json is not valid JSON") as caught:
        parse_json(text, "f.json")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null]}', "f") == {"a": [1, 2.5, None]}
    assert parse_json(b'"\\ud83d\\ude00"', "f") == "😀"


# -- text --------------------------------------------------------------------------------------


def test_escapes_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mb\nc\r\u202e\x9b") == "a\\x1b[31mb\\nc\\r\\u202e\\x9b"
    assert printable("γ-Ω, ü 画") == "γ-Ω, ü 画"
    assert printable("x" * 600) == "x" * 500 + "…"


def test_a_cell_of_markdown_is_text() -> None:
    assert table_cell("ctm_gan, γ = 0.5; 1 - 2") == "ctm_gan, γ = 0.5; 1 - 2"
    assert table_cell("a|b\nc") == "a\\|b\\\\nc"
    assert table_cell("<b>`x` ![i](u) **x**") == ("&lt;b&gt;\\`x\\` ![i\\](u) \\*\\*x\\*\\*")
    assert table_cell("[a][b] 3.8 [3.5, 4.1]") == "[a\\][b] 3.8 [3.5, 4.1]"


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1", " =1", "-1+cmd"])
def test_a_cell_of_csv_is_no_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "-0.5", "+1", "1e-3", "-inf", "gamma", "0;1", "a=b", "0+1"])
def test_numbers_and_plain_text_stay_in_csv(text: str) -> None:
    assert csv_cell(text) == text


def test_plain_names_of_files_stay() -> None:
    for name in ("digits-fd-nfe", "smoke-samples-ctm_gan", "a.b", "0", "x" * 100, "console"):
        assert file_name(name) == name


HOSTILE_NAMES = (
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "a.", "a ", " a", "A",
    "x" * 101, "x" * 5000, "con", "nul.png", "com1", "lpt9.x", "a\0b", "a\nb", "ü", "画", "\ud800",
    "a:b", "~", "*", "a_b|", "a__b|", "\u202ea",
)  # fmt: skip


def test_any_text_gives_a_safe_name_of_its_own(tmp_path: Path) -> None:
    names = [file_name(text) for text in HOSTILE_NAMES]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert len(name) <= 100 and name.isascii() and name[0].isalnum() and "/" not in name
        (tmp_path / f"{name}.pdf").touch()
    assert len(list(tmp_path.iterdir())) == len(names)
