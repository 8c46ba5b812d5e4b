"""Files and text that somebody else may have written: read within bounds, shown without harm.

A path that a user gives may be a named pipe, a device, a sparse file of terabytes or JSON nested
a million deep. Readers here look before they open, bound what they take, and end in one sentence.
Text from such files is escaped where it is printed (:func:`printable`).
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Callable
from io import BufferedReader
from typing import Any

from ctm_core.runtime.errors import Missing, UserError

PathLike = str | os.PathLike[str]

#: Bytes of a text file (YAML, JSON, CSV) that is read whole.
LARGEST_TEXT = 64 * 2**20

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: PathLike) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises
    ------
    Missing
        If it is missing.
    UserError
        If it is a folder, pipe, socket or device: none of these is opened.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode)
        # It may have been replaced since: a pipe must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Missing(f"{path} is missing; make it first or correct the path") from None
    except ValueError:  # a NUL in the path
        raise UserError(f"{printable(str(path))} cannot be a path; correct it") from None
    try:
        _refuse_special(path, os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_special(path: PathLike, mode: int) -> None:
    for matches, name in _KINDS:
        if matches(mode):
            raise UserError(f"{path} is {name}, not a file; correct the path")


def read_bytes(path: PathLike, limit: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises
    ------
    UserError
        As :func:`open_regular`, or if the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(
            f"{path} is larger than {limit / 2**20:,.0f} MiB, which no file of this kind is; "
            "correct the path"
        )
    return content


def parse_json(text: str | bytes, path: PathLike) -> Any:
    """JSON text as plain data; NaN and infinities are refused.

    Raises
    ------
    UserError
        If the text is not JSON, is nested too deeply, or holds a number that cannot be.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not valid JSON ({printable(str(reason))})") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def printable(text: str, longest: int = 500) -> str:
    """Text for a terminal or a log: control and invisible characters escaped, one line, cut."""
    shown = "".join(
        char if char == " " or (char.isprintable() and unicodedata.category(char) != "Cf") else
        char.encode("unicode_escape").decode()
        for char in text[: longest + 1]
    )  # fmt: skip
    return shown if len(text) <= longest else f"{shown[:longest]}…"


def printable_lines(text: str) -> str:
    """Lines for a terminal or a log, with control and invisible characters escaped."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))
