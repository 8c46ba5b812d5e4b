"""Fetching one file of a data set."""

import http.client
import urllib.request
from pathlib import Path

from ctm_core.errors import UserError
from ctm_core.files import atomic_write

__all__ = ["fetch"]


def fetch(url: str, path: Path, *, title: str, remedy: str) -> Path:
    """Fetch ``url`` to ``path``, unless that file exists; what it holds is the caller's to check.

    Raises
    ------
    UserError
        If it cannot be fetched; the sentence begins with ``title`` and ends with ``remedy``.
    """
    if path.is_file():
        return path
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as answer,
            atomic_write(path) as temporary,
            open(temporary, "wb") as file,
        ):
            while block := answer.read(1 << 20):
                file.write(block)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{title}: {url} cannot be fetched ({error}); {remedy}") from None
    return path
