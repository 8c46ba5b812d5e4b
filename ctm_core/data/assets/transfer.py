"""One file over HTTP, resuming where an earlier attempt ended.

A partial file is continued with ``Range: bytes=N-``: a 206 answer is appended, a 200 (a server
without ranges, or whose file has changed) starts the file over. ``If-Range`` carries the validator
of the first answer (a strong ETag, else the date), kept next to the part in ``<part>.json``, so
that two versions are never joined. A part without a validator is continued only if a hash will be
compared afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

import requests
from urllib3.exceptions import ReadTimeoutError

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, sync_folder
from ctm_core.runtime.progress import Transferred

__all__ = ["Patience", "TransferError", "download", "forget", "install", "remove"]

log = logging.getLogger(__name__)

#: Bytes per write; at most this many are lost when a connection stalls.
CHUNK = 1 << 16
CONNECT = 15.0


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Parameters
    ----------
    timeout
        Seconds without a byte after which a connection counts as dead.
    attempts
        Attempts in a row without a new byte; one that brings bytes resets the count.
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
        If the disk has too little space.
    """
    patience = patience or Patience()
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
                _attempt(url, part, file, title, size, checked, patience.timeout)
            return earlier
        except requests.RequestException as error:
            fruitless = 1 if _length(part) > before else fruitless + 1
            reason, again = _explain(error, part, patience.timeout)
            if fruitless >= patience.attempts or not again:
                raise TransferError(reason) from None
            log.info("%s: %s; trying again", title, reason)
        time.sleep(patience.pause * 2 ** (fruitless - 1))


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
        # Some servers call a .tar.gz, sent as it is, an encoding; requests would unpack it.
        answer.raw.headers.pop("Content-Encoding", None)
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None:
            _check_length(url, part, start, total, size)
        if _note(part).get("url") != url:
            _remember(part, url, answer.headers)
        bar = Transferred(title, start, total or size)
        try:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            bar.close()


def _stay_encrypted(answer: requests.Response, **_: Any) -> None:
    """Refuse a redirect from https to http before it is followed."""
    if not answer.is_redirect:
        return
    target = urljoin(answer.url, answer.headers["Location"])
    if answer.url.startswith("https:") and not target.startswith("https:"):
        raise TransferError(f"it redirects to {target}, which is not encrypted")


def _check_length(url: str, part: Path, start: int, total: int, size: int | None) -> None:
    if size is not None and total != size:
        raise TransferError(f"it has {total:,} bytes there, expected {size:,}")
    free = shutil.disk_usage(part.parent).free
    if total - start > free:
        raise UserError(
            f"{part.parent} has {free / 1e6:,.1f} MB free, but {(total - start) / 1e6:,.1f} MB "
            f"more are needed for {url}; free some space and run the same command again"
        )


def _explain(error: requests.RequestException, part: Path, timeout: float) -> tuple[str, bool]:
    """What went wrong, and whether another attempt may succeed."""
    cause = error.args[0] if error.args else None
    here = f"; {_length(part):,} bytes of it are here" if _length(part) else ""
    match error:
        case requests.HTTPError(response=requests.Response() as answer):
            again = answer.status_code in (408, 429) or answer.status_code >= 500
            return f"the server answers {answer.status_code} {answer.reason}", again
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


def _note(part: Path) -> dict[str, str]:
    """Address and validator of a part; empty if they cannot be read."""
    try:
        note = read_json(_note_path(part))
    except (OSError, UserError):
        return {}
    return note if isinstance(note, dict) else {}


def _remember(part: Path, url: str, headers: Any) -> None:
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    # Not synced: without it the next attempt merely starts over.
    _note_path(part).write_text(json.dumps({"url": url, "validator": validator}))
