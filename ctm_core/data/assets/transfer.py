"""One file over HTTP, going on where an earlier attempt ended.

The transfer is that of ``pooch``'s downloader, which cannot go on with a part. So it is given an
open file at its end, the header ``Range: bytes=N-``, and a hook that looks at the answer before
the first byte is written: 206 is appended, 200 (a server that knows no ranges, or whose file has
changed) starts the file anew. ``If-Range`` carries the validator of the first answer (a strong
ETag, else the date), kept beside the part in ``<part>.json``. A part without one is continued only
if a hash will be compared afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import pooch  # type: ignore[import-untyped]
import requests
from urllib3.exceptions import ReadTimeoutError

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.progress import Transferred

__all__ = ["Patience", "TransferError", "download", "forget", "remove"]

log = logging.getLogger(__name__)

#: Lost at most when a connection stalls.
CHUNK = 1 << 16
CONNECT = 15.0


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Parameters
    ----------
    timeout
        Seconds without a byte after which a connection counts as dead.
    attempts
        Attempts in a row that bring nothing new; one that brings bytes begins the count anew.
    pause
        Seconds before the second of them, doubled before each further one.
    """

    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0


class TransferError(Exception):
    """The file cannot be had from this address; the text is the reason, in words."""


def download(
    url: str,
    part: Path,
    *,
    title: str,
    size: int | None = None,
    checked: bool = False,
    patience: Patience | None = None,
) -> bool:
    """Fetch ``url`` into ``part``, going on with what is there; on return it holds the answer.

    Parameters
    ----------
    title
        What is fetched, for the display.
    size
        The bytes it must have, if that is known; another announced length is refused at once.
    checked
        A hash will be compared, so a part of unknown origin may be continued.

    Returns
    -------
    bool
        Whether some of the bytes are from an earlier call.

    Raises
    ------
    TransferError
        After the last attempt, or at once where another one cannot help.
    UserError
        If the disk has no room for it.
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
                _Attempt(url, part, file, title, size, checked, patience.timeout).run()
            return earlier
        except requests.RequestException as error:
            fruitless = 1 if _length(part) > before else fruitless + 1
            if fruitless >= patience.attempts or not _passing(error):
                raise TransferError(_reason(error, part, patience)) from None
            log.info("%s: %s; trying again", title, _reason(error, part, patience))
        time.sleep(patience.pause * 2 ** (fruitless - 1))


def forget(part: Path) -> None:
    """Empty a part and remove what is noted of it; the file stays, for somebody may hold it."""
    if part.exists():
        os.truncate(part, 0)
    _note_path(part).unlink(missing_ok=True)


def remove(part: Path) -> None:
    """Remove a part that has been renamed or is empty, and what is noted of it."""
    if _length(part) == 0:
        part.unlink(missing_ok=True)
        _note_path(part).unlink(missing_ok=True)


class _Attempt:
    """One request, and what is done with the head of its answer."""

    def __init__(
        self,
        url: str,
        part: Path,
        file: BinaryIO,
        title: str,
        size: int | None,
        checked: bool,
        timeout: float,
    ) -> None:
        self.url, self.part, self.file, self.size, self.checked = url, part, file, size, checked
        self.start = file.seek(0, 2)
        self.timeout = timeout
        self.bar = Transferred(title)

    def run(self) -> None:
        # Compressed on the way, a range would be one of other bytes.
        headers = {"Accept-Encoding": "identity"}
        if self.start:
            headers["Range"] = f"bytes={self.start}-"
            if validator := _note(self.part).get("validator"):
                headers["If-Range"] = validator
            elif not self.checked:
                self._anew()
                del headers["Range"]
        fetch = pooch.HTTPDownloader(
            progressbar=self.bar,
            chunk_size=CHUNK,
            timeout=(min(CONNECT, self.timeout), self.timeout),
            headers=headers,
            hooks={"response": self._begin},
        )
        try:
            fetch(self.url, self.file, None)
        except _Complete:
            pass
        finally:
            self.bar.end()

    def _begin(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        """Look at the head of an answer: where its bytes belong, and how many there will be."""
        if answer.is_redirect:
            self._check_redirect(answer)
            return
        if answer.status_code == 416:
            self._refused_range(answer)
            return
        if answer.status_code not in (200, 206):
            return  # pooch raises
        span = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", answer.headers.get("Content-Range", ""))
        if answer.status_code == 200:
            self._anew()
        elif span is None or int(span[1]) != self.start:
            self._anew()
            raise requests.ConnectionError("answered with another range than was asked for")
        # Some servers call a .tar.gz, sent as it is, an encoding; it would be unpacked on the way.
        answer.raw.headers.pop("Content-Encoding", None)
        length = answer.headers.get("Content-Length", "")
        total = self.start + int(length) if length.isdecimal() else None
        if self.size is not None and total is not None and total != self.size:
            raise TransferError(f"it has {total:,} bytes there, expected {self.size:,}")
        if total is not None:
            self._check_room(total - self.start)
        self.bar.begin(self.start, total or self.size)
        if answer.status_code == 200 or _note(self.part).get("url") != self.url:
            _remember(self.part, self.url, answer.headers)

    def _anew(self) -> None:
        self.file.truncate(0)
        self.start = 0

    def _refused_range(self, answer: requests.Response) -> None:
        """416: nothing follows what is here; either it is whole, or another file."""
        whole = answer.headers.get("Content-Range", "") == f"bytes */{self.start}"
        if whole and (self.checked or _note(self.part).get("url") == self.url):
            raise _Complete
        self._anew()
        raise requests.ConnectionError("has another file than before")

    def _check_redirect(self, answer: requests.Response) -> None:
        target = urljoin(answer.url, answer.headers["Location"])
        safe = urlsplit(answer.url).scheme == "https"
        if safe and urlsplit(target).scheme != "https" and not self.checked:
            raise TransferError(f"it redirects to {target}, which is not encrypted")

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"{self.part.parent} has {free / 1e6:,.1f} MB free, but {needed / 1e6:,.1f} MB "
                f"more are needed for {self.url}; free some space and run the same command again"
            )


class _Complete(Exception):
    """The part is the whole."""


def _passing(error: requests.RequestException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(
        error,
        requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError,
    )


def _reason(error: requests.RequestException, part: Path, patience: Patience) -> str:
    """What went wrong, in words."""
    cause = error.args[0] if error.args else None
    here = f"; {_length(part):,} bytes of it are here" if _length(part) else ""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
        return f"the server sent nothing for {patience.timeout:g} s{here}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection broke off{here}"
    if isinstance(error, requests.TooManyRedirects):
        return "its address redirects in a circle"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.ConnectionError) and isinstance(cause, str):
        return f"the server {cause}"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to it{here}"
    return " ".join(str(error).split()) or type(error).__name__


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path) -> dict[str, str]:
    """What is known of a part's origin; nothing, if that cannot be read."""
    try:
        note = json.loads(_note_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _remember(part: Path, url: str, headers: Any) -> None:
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    # Not synced: a note that is lost only makes the next attempt begin anew.
    _note_path(part).write_text(json.dumps({"url": url, "validator": validator}))
