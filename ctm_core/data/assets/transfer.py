"""One file over HTTP, resuming where an earlier attempt ended.

A partial file is continued with ``Range: bytes=N-``: a 206 answer is appended, a 200 (a server
without ranges, or whose file has changed) starts the file over. ``If-Range`` carries the validator
of the first answer (a strong ETag, else the date), kept next to the part in ``<part>.json``, so
that two versions are never joined; a 206 answer that shows another validator or length is not
believed. A part without a validator is continued only if a hash will be compared afterwards.

A transfer is bounded: by the listed or announced length, else by a cap and the free space, and by
a least speed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, sync_folder
from ctm_core.runtime.progress import Transferred
from ctm_core.runtime.untrusted import printable

log = logging.getLogger(__name__)

#: Bytes per write; at most this many are lost when a connection stalls.
CHUNK = 1 << 16
CONNECT = 15.0
#: Bytes per second; a connection that is slower counts as dead.
SLOWEST = 1000
#: Bytes of a file whose length nobody knows.
LARGEST = 2**35


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Parameters
    ----------
    timeout
        Seconds without a byte, or with fewer than 1,000 per second, after which a connection
        counts as dead.
    attempts
        Attempts in a row without progress; one that brings as many bytes resets the count.
    pause
        Seconds before the second of them, doubled before each further one.
    """

    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0


class TransferError(Exception):
    """The file cannot be fetched from this address; the text is the reason."""


def download(
    url: str,
    part: Path,
    *,
    title: str,
    size: int | None = None,
    largest: int = LARGEST,
    checked: bool = False,
    patience: Patience | None = None,
) -> bool:
    """Fetch ``url`` into ``part``, continuing what is there; on return it holds the whole file.

    Parameters
    ----------
    title
        Name of the file in the progress display.
    size
        Its length in bytes, if known; a server that announces another one is refused at once.
    largest
        The most bytes that it may have otherwise.
    checked
        Whether a hash will be compared, so that a part of unknown origin may be continued.

    Returns
    -------
    bool
        Whether some of the bytes are from an earlier call.

    Raises
    ------
    TransferError
        After the last attempt, or at once where another one cannot help.
    UserError
        If the disk has too little space, or the part is no file.
    """
    patience = patience or Patience()
    check_part(part)
    if not checked and _note(part).get("url") != url:
        forget(part)
    earlier = _length(part) > 0
    fruitless = 0
    while True:
        before = _length(part)
        if size is not None and before == size:
            return earlier
        if size is not None and before > size:
            forget(part)
        try:
            with open(part, "ab") as file:
                _attempt(url, part, file, title, size, largest, checked, patience.timeout)
            return earlier
        except requests.RequestException as error:
            progress = _length(part) - before
            fruitless = 1 if progress >= SLOWEST * patience.timeout else fruitless + 1
            reason, again = _explain(error, part, patience.timeout)
            if fruitless >= patience.attempts or not again:
                raise TransferError(reason) from None
            log.info("%s: %s; trying again", title, reason)
        time.sleep(patience.pause * 2 ** (fruitless - 1))


def check_part(part: Path) -> None:
    """Refuse a part that is a pipe or device, which opening would wait for."""
    if part.exists() and not part.is_file():
        raise UserError(f"{printable(str(part))} is not a file; delete it and run again")


def forget(part: Path) -> None:
    """Empty a part and drop its validator; the file itself stays, since it may be locked."""
    if part.exists():
        os.truncate(part, 0)
    _note_path(part).unlink(missing_ok=True)


def remove(part: Path) -> None:
    """Remove an empty or renamed part with its validator."""
    if _length(part) == 0:
        part.unlink(missing_ok=True)
        _note_path(part).unlink(missing_ok=True)


def install(part: Path, path: Path) -> None:
    """Rename a complete part to ``path``, so that it survives a power cut."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    remove(part)
    sync_folder(path.parent)


def _attempt(
    url: str,
    part: Path,
    file: BinaryIO,
    title: str,
    size: int | None,
    largest: int,
    checked: bool,
    timeout: float,
) -> None:
    """One request; its bytes are appended to ``file``, which is the part."""
    validator = _note(part).get("validator")
    if not validator and not checked:
        forget(part)
    start = _length(part)
    # Compressed on the way, a range would count other bytes.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    with requests.get(
        url,
        headers=headers,
        stream=True,
        timeout=(min(CONNECT, timeout), timeout),
        hooks={"response": [] if checked else [_stay_encrypted]},
    ) as answer:
        if answer.status_code == 416:  # no bytes after these: the part is complete, or foreign
            complete = answer.headers.get("Content-Range") == f"bytes */{start}"
            if complete and (checked or _note(part).get("url") == url):
                return
            forget(part)
            raise requests.ConnectionError("has another file than before")
        answer.raise_for_status()
        if answer.status_code != 206:
            forget(part)
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            forget(part)
            raise requests.ConnectionError("answered with another range than was asked for")
        total = _total(answer, start)
        now = {"url": url, "validator": _validator(answer.headers), "length": total}
        before = _note(part)
        if start and before.get("url") == url and _differ(before, now):
            forget(part)
            raise requests.ConnectionError("has another file than before")
        limit = _limit(url, part, start, total, size, largest)
        if before.get("url") != url or not start:
            # Not synced: without it the next attempt merely starts over.
            _note_path(part).write_text(json.dumps(now))
        bar = Transferred(title, start, total or size)
        try:
            for chunk in _chunks(answer, timeout):
                if bar.done + len(chunk) > limit:
                    file.flush()
                    forget(part)
                    raise TransferError(f"it sends more than {limit:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            bar.close()
        if total is not None and bar.done < total:
            raise requests.exceptions.ChunkedEncodingError("a part of what was asked for")


def _chunks(answer: requests.Response, timeout: float) -> Iterator[bytes]:
    """What comes, as it comes and without decoding."""
    began, received = time.monotonic(), 0
    while True:
        try:
            chunk = answer.raw.read1(CHUNK)
        except ReadTimeoutError as error:
            raise requests.ConnectionError(error) from None
        except HTTPError as error:
            raise requests.exceptions.ChunkedEncodingError(error) from None
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        if time.monotonic() - began > timeout:
            if received < SLOWEST * timeout:
                raise requests.ConnectionError(f"sends less than {SLOWEST:,} bytes per second")
            began, received = time.monotonic(), 0


def _total(answer: requests.Response, start: int) -> int | None:
    """The length of the whole file, if the server says it."""
    if answer.status_code == 206:
        spans = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        return int(spans[1]) if spans else None
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None


def _differ(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two answers are known to be about different files."""
    pairs = [(before.get(key), now[key]) for key in ("validator", "length")]
    return any(old and new and old != new for old, new in pairs)


def _stay_encrypted(answer: requests.Response, **_: Any) -> None:
    """Refuse a redirect from https to http before it is followed."""
    if not answer.is_redirect:
        return
    target = urljoin(answer.url, answer.headers["Location"])
    if answer.url.startswith("https:") and not target.startswith("https:"):
        raise TransferError(f"it redirects to {printable(target)}, which is not encrypted")


def _limit(
    url: str, part: Path, start: int, total: int | None, size: int | None, largest: int
) -> int:
    """The most bytes that the part may have in the end."""
    free = shutil.disk_usage(part.parent).free
    if total is None:
        # Of an unknown length the last tenth of the disk is not taken.
        return size if size is not None else min(largest, start + free * 9 // 10)
    if size is not None and total != size:
        raise TransferError(f"it has {total:,} bytes there, expected {size:,}")
    if size is None and total > largest:
        raise TransferError(f"it has {total:,} bytes there, expected at most {largest:,}")
    if total - start > free:
        raise UserError(
            f"{part.parent} has {free / 1e6:,.1f} MB free, but {(total - start) / 1e6:,.1f} MB "
            f"more are needed for {url}; free some space and run the same command again"
        )
    return total


def _explain(error: requests.RequestException, part: Path, timeout: float) -> tuple[str, bool]:
    """What went wrong, and whether another attempt may succeed."""
    cause = error.args[0] if error.args else None
    here = f"; {_length(part):,} bytes of it are here" if _length(part) else ""
    match error:
        case requests.HTTPError(response=requests.Response() as answer):
            again = answer.status_code in (408, 429) or answer.status_code >= 500
            return f"the server answers {answer.status_code} {printable(answer.reason)}", again
        case requests.exceptions.SSLError():
            return "its certificate is not accepted", False
        case requests.TooManyRedirects():
            return "its address redirects in a circle", False
        case requests.exceptions.ChunkedEncodingError():
            return f"the connection broke off{here}", True
        case requests.Timeout():
            return f"the server sent nothing for {timeout:g} s{here}", True
        case requests.ConnectionError() if isinstance(cause, ReadTimeoutError):
            return f"the server sent nothing for {timeout:g} s{here}", True
        case requests.ConnectionError() if isinstance(cause, str):
            return f"the server {cause}", True
        case requests.ConnectionError():
            return f"no connection to it{here}", True
    return " ".join(str(error).split()) or type(error).__name__, False


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path) -> dict[str, Any]:
    """Address, validator and whole length of a part; empty if they cannot be read."""
    try:
        note = read_json(_note_path(part))
    except (OSError, UserError):
        return {}
    return note if isinstance(note, dict) else {}


def _validator(headers: Any) -> str:
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))
