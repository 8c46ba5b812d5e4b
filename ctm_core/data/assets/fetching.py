"""Getting external files: download, comparison, pin, and only then the file's own name.

The one place, beside the data sets' `--source URL`, that opens a connection; jobs never do. A file
grows as ``<file>.part`` in the assets folder and is renamed when its hash is the known one. Where
none is known, the hash of what came is pinned (:mod:`.pins`), if it looks like a file of its
format and that format cannot run code; the second is refused before anything is fetched.

Licences are shown when a file is first fetched or pinned, and again when their text changes. What
was shown is recorded in ``licences.json`` beside the files.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ctm_core.config.asset_listing import Asset, load
from ctm_core.data.assets.overview import chosen
from ctm_core.data.assets.pinning import pin_file, pin_given, unlike
from ctm_core.data.assets.states import State, expected, look, problem, shown
from ctm_core.data.assets.transfer import Patience, TransferError, download, forget, remove
from ctm_core.runtime.errors import UserError, plain_sentence
from ctm_core.runtime.files import read_json, sync_folder, write_json

__all__ = ["LICENCES", "fetch", "fetch_all", "selected"]

PathLike = str | os.PathLike[str]
Say = Callable[[str], None]

LICENCES = "licences.json"


def selected(
    names: Sequence[str],
    config: Path | None = None,
    experiment: str | None = None,
    sha256: str | None = None,
) -> list[Asset]:
    """The files of these names, of a config and of an experiment.

    Parameters
    ----------
    sha256
        The hash of the only file, stated by a person, which is pinned.

    Raises
    ------
    UserError
        If nothing is asked for, a name is unknown, or the hash is none or another than the known.
    """
    wanted: dict[str, Asset] = {}
    for name in names:
        known = load()
        if name not in known:
            raise UserError(f"unknown asset {name!r}; known are {', '.join(known)}")
        wanted[name] = known[name]
    if config is not None or experiment is not None:
        wanted |= chosen(config, experiment)[0]
    if not wanted and config is None:
        raise UserError("name the files to fetch (`ctm assets` lists them), or give --config FILE")
    if sha256 is None:
        return list(wanted.values())
    if len(wanted) != 1 or not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise UserError("--sha256 takes 64 hexadecimal digits, and one NAME with them")
    return [pin_given(asset, sha256.lower()) for asset in wanted.values()]


def fetch_all(
    assets: Sequence[Asset],
    folder: PathLike | None = None,
    *,
    patience: Patience | None = None,
    say: Say = print,
    complain: Say = print,
) -> None:
    """Fetch files one after the other; one that fails does not keep the others from coming.

    Raises
    ------
    UserError
        With the sentence of the one that failed; if several did, ``complain`` has been given
        theirs.
    """
    failed = []
    for asset in assets:
        try:
            say(f"{asset.name}: {fetch(asset, folder, patience=patience, say=say)}")
        except UserError as error:
            failed.append(str(error))
        except OSError as error:
            failed.append(_no_place(asset, error, folder))
    if len(failed) == 1:
        raise UserError(failed[0])
    for sentence in failed:
        complain(sentence)
    if failed:
        raise UserError(f"{len(failed)} of {len(assets)} files are not here yet, see above")


def fetch(
    asset: Asset,
    folder: PathLike | None = None,
    *,
    patience: Patience | None = None,
    say: Say = print,
) -> str:
    """Bring one file into the assets folder, unless it is there; pin it if it has no known hash.

    Returns
    -------
    str
        What was done, in words.

    Raises
    ------
    UserError
        If it could not be had, is not what it should be, or must be fetched by hand.
    """
    path = asset.path(folder)
    found, _ = look(asset, path)
    if found is State.PRESENT or (found is State.UNPINNED and asset.kind == "folder"):
        return f"is at {shown(path)}"
    by_hand = asset.package is not None or not asset.urls
    if found is State.UNREADABLE or (by_hand and found is not State.UNPINNED):
        raise UserError(problem(asset, folder) or "")
    _refuse_unknown_code(asset)
    _show_licence(asset, path.parent, say)
    if found is State.UNPINNED:
        return pin_file(asset, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _alone(part, asset):
        told = _download(asset, path, part, patience)
        aside = path.with_name(path.name + ".wrong")
        if found is State.WRONG:
            os.replace(path, aside)
            told += f"; the other file of that name is now {shown(aside)}"
        _install(part, path)
    return told


def _no_place(asset: Asset, error: OSError, folder: PathLike | None) -> str:
    """Why nothing can be written into the folder, as a sentence; raises what is nobody's fault."""
    reason = plain_sentence(OSError(error.errno, error.strerror))
    if reason is None:
        raise error
    place = shown(asset.path(folder).parent)
    return f"{asset.title} ({asset.name}) cannot be put into {place}: {reason}"


def _refuse_unknown_code(asset: Asset) -> None:
    if asset.runs_code and asset.sha256 is None:
        place = f" from {' or '.join(asset.urls)}" if asset.urls else ""
        raise UserError(
            f"{asset.title} ({asset.name}){place} is refused, for files of the format "
            f"{asset.format} can run code and its SHA-256 is not known: learn it from somebody "
            f"you trust and give it with `ctm assets fetch {asset.name} --sha256 …`"
        )


def _download(asset: Asset, path: Path, part: Path, patience: Patience | None) -> str:
    """Fill ``part`` from the first address that has the right file; what was done, in words."""
    reasons = []
    for url in asset.urls:
        try:
            return _from(asset, url, part, patience)
        except TransferError as error:
            reasons.append(f"{url}: {error}")
    kept = part.exists() and part.stat().st_size > 0
    again = "run the same command again to go on, or " if kept else ""
    raise UserError(
        f"{asset.title} ({asset.name}) cannot be fetched from {'; nor from '.join(reasons)}; "
        f"{again}get the file elsewhere ({expected(asset) or 'no hash is known'}) and put it at "
        f"{shown(path)}"
    )


def _from(asset: Asset, url: str, part: Path, patience: Patience | None) -> str:
    checked = asset.hash is not None
    while True:
        continued = download(
            url,
            part,
            title=asset.name,
            size=asset.size,
            checked=checked,
            patience=patience,
        )
        found, got = look(asset, part)
        part_of_hash = asset.sha256 is None and (asset.hash or "").startswith("sha256:")
        if found is State.PRESENT and not part_of_hash:
            return f"fetched from {url}, its hash is the known one"
        if found is not State.WRONG:
            if (foreign := unlike(asset, part)) is None:
                return f"fetched from {url}; {pin_file(asset, part)}"
            forget(part)
            raise TransferError(f"what came is {foreign} and was deleted")
        forget(part)
        # The part may have been of another file; a fresh copy decides.
        if not continued:
            raise TransferError(
                f"what came has {got}, expected {expected(asset)}, and was deleted"
            )


def _install(part: Path, path: Path) -> None:
    """Give a whole part its name, so that it survives a power cut."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    remove(part)
    sync_folder(path.parent)


@contextmanager
def _alone(part: Path, asset: Asset) -> Iterator[None]:
    """Hold the part, so that two commands do not write to it together."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{asset.title} ({asset.name}) is being fetched by another process, which writes "
                f"{shown(part)}; wait until it has ended"
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        try:
            yield
        finally:
            remove(part)


def _show_licence(asset: Asset, folder: Path, say: Say) -> None:
    """Say a file's licence once, and record beside the files that it was said."""
    record = folder / LICENCES
    known = read_json(record) if record.exists() else {}
    if not isinstance(known, dict):
        raise UserError(f"{shown(record)} is no record of licences; delete it")
    old = known.get(asset.name)
    if isinstance(old, dict) and old.get("licence") == asset.licence:
        return
    say(f"{asset.name}: licence of {asset.title}: {asset.licence}")
    known[asset.name] = {
        "file": asset.file,
        "licence": asset.licence,
        "from": " or ".join(asset.urls) or asset.by_hand,
        "shown": str(datetime.date.today()),
    }
    write_json(record, dict(sorted(known.items())))
