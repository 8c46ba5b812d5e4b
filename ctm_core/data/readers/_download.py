"""Fetching one file of a data set."""

from pathlib import Path

from ctm_core.runtime.errors import UserError

__all__ = ["fetch"]


def fetch(url: str, path: Path, *, title: str, remedy: str) -> Path:
    """Fetch ``url`` to ``path``, unless that file exists; what it holds is the caller's to check.

    It grows as ``<path>.part``, which a later call continues.

    Raises
    ------
    UserError
        If it cannot be fetched; the sentence begins with ``title`` and ends with ``remedy``.
    """
    if path.is_file():
        return path
    # Imported here: reading data needs nothing that opens connections.
    from ctm_core.data.assets.transfer import TransferError, download, install, remove

    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download(url, part, title=title)
        install(part, path)
    except TransferError as error:
        raise UserError(f"{title}: {url} cannot be fetched ({error}); {remedy}") from None
    finally:
        remove(part)
    return path
