"""Getting external files: download, check, pin, and only then the file's own name.

Only this and the data sets' `--source URL` open connections; jobs never do. A file grows as
``<file>.part`` in the assets folder and is renamed when its hash is the known one. Where none is
known, the hash of the download is pinned (:mod:`.states`), if it looks like a file of its format.
A format that can run code is refused then, before anything is fetched.

Licences are shown when a file is first fetched or pinned, and again when their text changes. What
was shown is recorded in ``licences.json`` next to the files.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ctm_core.config.asset_listing import Asset, named
from ctm_core.data.assets.overview import chosen
from ctm_core.data.assets.states import (
    State,
    expected,
    look,
    pin_file,
    pin_given,
    problem,
    shown,
    unlike,
)
from ctm_core.data.assets.transfer import (
    Patience,
    TransferError,
    check_part,
    download,
    forget,
    install,
    remove,
)
from ctm_core.runtime.errors import UserError, plain_sentence
from ctm_core.runtime.files import lock, read_json, write_json

PathLike = str | os.PathLike[str]
Say = Callable[[str], None]

LICENCES = "licences.json"


def selected(
    names: Sequence[str],
    config: Path | None = None,
    experiment: str | None = None,
    sha256: str | None = None,
) -> list[Asset]:
    """The files of these names, of a config and an experiment; without any, all downloadable ones.

    Parameters
    ----------
    sha256
        The hash of the only file, stated by a person, which is pinned.

    Raises
    ------
    UserError
        If a name is unknown, or the hash is malformed or contradicts a known one.
    """
    wanted = {name: named(name) for name in names}
    if config is not None or experiment is not None:
        wanted |= chosen(config, experiment)[0]
    elif not names:
        wanted = {name: asset for name, asset in chosen()[0].items() if asset.downloadable}
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
    """Fetch files one after the other; a failure does not stop the others.

    Raises
    ------
    UserError
        With the sentence of the one that failed; if several did, ``complain`` has been given
        theirs.
    """
    failures = []
    for asset in assets:
        try:
            say(f"{asset.name}: {fetch(asset, folder, patience=patience, say=say)}")
        except UserError as error:
            failures.append(str(error))
        except OSError as error:
            reason = plain_sentence(OSError(error.errno, error.strerror))
            if reason is None:
                raise
            place = shown(asset.path(folder).parent)
            failures.append(f"{_name(asset)} cannot be put into {place}: {reason}")
    if len(failures) == 1:
        raise UserError(failures[0])
    for sentence in failures:
        complain(sentence)
    if failures:
        raise UserError(f"{len(failures)} of {len(assets)} files are not here yet, see above")


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
        If it could not be fetched, is not what it should be, or must be fetched by hand.
    """
    path = asset.path(folder)
    current, _ = look(asset, path)
    if current is State.PRESENT or (current is State.UNPINNED and asset.kind == "folder"):
        return f"is at {shown(path)}"
    by_hand = asset.package is not None or not asset.urls
    if current is State.UNREADABLE or (by_hand and current is not State.UNPINNED):
        raise UserError(problem(asset, folder) or "")
    if asset.runs_code and asset.sha256 is None:
        origin = f" from {' or '.join(asset.urls)}" if asset.urls else ""
        raise UserError(
            f"{_name(asset)}{origin} is refused because files of the format {asset.format} can "
            "run code and its SHA-256 is not known: get it from somebody you trust and pass it "
            f"with `ctm assets fetch {asset.name} --sha256 …`"
        )
    _show_licence(asset, path.parent, say)
    if current is State.UNPINNED:
        return pin_file(asset, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _locked(part, asset):
        outcome = _download(asset, path, part, patience)
        if current is State.WRONG:
            aside = path.with_name(path.name + ".wrong")
            os.replace(path, aside)
            outcome += f"; the other file of that name is now {shown(aside)}"
        install(part, path)
    return outcome


def _name(asset: Asset) -> str:
    return f"{asset.title} ({asset.name})"


def _download(asset: Asset, path: Path, part: Path, patience: Patience | None) -> str:
    """Fill ``part`` from the first address that has the right file; what was done, in words."""
    reasons = []
    for url in asset.urls:
        try:
            return _download_from(url, asset, part, patience)
        except TransferError as error:
            reasons.append(f"{url}: {error}")
    partial = part.exists() and part.stat().st_size > 0
    again = "run the same command again to go on, or " if partial else ""
    raise UserError(
        f"{_name(asset)} cannot be fetched from {'; nor from '.join(reasons)}; {again}get the "
        f"file elsewhere ({expected(asset) or 'no hash is known'}) and put it at {shown(path)}"
    )


def _download_from(url: str, asset: Asset, part: Path, patience: Patience | None) -> str:
    checked, continued = asset.hash is not None, True
    while continued:
        continued = download(
            url, part, title=asset.name, size=asset.size, checked=checked, patience=patience
        )
        current, actual = look(asset, part)
        incomplete_hash = asset.sha256 is None and (asset.hash or "").startswith("sha256:")
        if current is State.PRESENT and not incomplete_hash:
            return f"fetched from {url}, its hash is the known one"
        if current is not State.WRONG:
            if (foreign := unlike(asset, part)) is None:
                return f"fetched from {url}; {pin_file(asset, part)}"
            forget(part)
            raise TransferError(f"what came is {foreign} and was deleted")
        # A part that was continued may have been of another file: a fresh copy decides.
        forget(part)
    raise TransferError(f"what came has {actual}, expected {expected(asset)}, and was deleted")


@contextmanager
def _locked(part: Path, asset: Asset) -> Iterator[None]:
    """Hold the part, so that two commands do not write to it together."""
    check_part(part)
    with open(part, "ab") as file:
        if not lock(file):
            raise UserError(
                f"{_name(asset)} is being fetched by another process, which writes {shown(part)}; "
                "wait until it has ended"
            )
        try:
            yield
        finally:
            remove(part)


def _show_licence(asset: Asset, folder: Path, say: Say) -> None:
    """Show a file's licence once, and record next to the files that it was shown."""
    record = folder / LICENCES
    known = read_json(record) if record.exists() else {}
    if not isinstance(known, dict):
        raise UserError(f"{shown(record)} is not a record of licences; delete it")
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
