"""Files and text that somebody else may have written: read within bounds, shown without harm.

A path that a user gives may be a named pipe, a device, a sparse file of terabytes or JSON nested
a million deep. Readers here look before they open, bound what they take, and end in one sentence.
Text from such files is escaped where it is printed (:func:`printable`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable
from io import BufferedReader
from typing import Any

from ctm_core.runtime.errors import Missing, UserError

PathLike = str | os.PathLike[str]

#: Bytes of a text file (YAML, JSON, CSV) that is read whole.
LARGEST_TEXT = 64 * 2**20

#: Characters that mean something to a reader of Markdown.
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*|"} | {"<": "&lt;", ">": "&gt;"})
#: The middle of a link or an image; brackets alone, as of an interval, are text.
_LINK = re.compile(r"\](?=[(\[:])")
#: What makes a cell of CSV a formula for a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}(?<!\.)")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")

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
        data = json.loads(text, parse_constant=_no_constant)
        if _SURROGATE.search(text if isinstance(text, bytes) else text.encode()):
            json.dumps(data, ensure_ascii=False).encode()  # half of a pair cannot be written
        return data
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


def table_cell(text: str) -> str:
    """Text for a cell or line of Markdown: one line, without tags, links or code."""
    return _LINK.sub(r"\\]", printable(text, len(text)).translate(_MARKDOWN))


def csv_cell(text: str) -> str:
    """Text for a cell of CSV: what a spreadsheet would take for a formula gets an apostrophe."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
    return text


def file_name(text: str) -> str:
    """A file's name for a text: plain ones as they are, others cleaned, with a hash of the text.

    It has no folders, is never hidden, empty, too long or a device's, and two texts do not share
    one, on file systems that ignore case neither.
    """
    if _PLAIN_NAME.fullmatch(text) and not _DEVICES.match(text):
        return text
    clean = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:80]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{clean or 'unnamed'}-{digest}"
