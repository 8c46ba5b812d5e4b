"""Fetching one file of a data set."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from ctm_core.runtime.errors import UserError


def is_url(source: str | None) -> TypeGuard[str]:
    """Whether a source is to be downloaded."""
    return source is not None and source.startswith(("http://", "https://"))


@contextmanager
def fetched(url: str, path: Path, *, title: str, remedy: str, largest: int) -> Iterator[Path]:
    """Fetch ``url`` to ``path`` unless that file exists; the caller checks what it holds.

    It grows as ``<path>.part``, which a later call continues. If the caller refuses it by a
    `UserError`, it is deleted, so that the next call fetches it again. More than ``largest`` bytes
    are not taken.

    Raises
    ------
    UserError
        If it cannot be fetched; the sentence begins with ``title`` and ends with ``remedy``.
    """
    if not path.is_file():
        # Imported here: reading data needs nothing that opens connections.
        from ctm_core.data.assets.transfer import TransferError, download, install, remove

        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(url, part, title=title, largest=largest)
            install(part, path)
        except TransferError as error:
            raise UserError(f"{title}: {url} cannot be fetched ({error}); {remedy}") from None
        finally:
            remove(part)
    try:
        yield path
    except UserError:
        path.unlink(missing_ok=True)
        raise
