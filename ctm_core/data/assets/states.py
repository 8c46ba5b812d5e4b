"""Whether an external file is present and the right one, what to do if not, and its pin.

==============  ===============================================================================
state           meaning
==============  ===============================================================================
``present``     present, and its hash is the known or the pinned one
``unpinned``    present, but no hash is known to compare it with (a folder: nothing is missing)
``missing``     not there
``wrong hash``  another file, or a part of it
``unreadable``  the folder or the file cannot be read
==============  ===============================================================================

A format that executes code when it is loaded is handed out only if all 64 digits of its SHA-256
are known and match. The hash of a file without a published one is pinned when ``ctm assets fetch``
brings or finds it, and when a workflow first uses it; that of a format that can run code is never
pinned like that, only when a person states it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from ctm_core.config import asset_pins
from ctm_core.config.asset_listing import LIST, Asset, list_path
from ctm_core.runtime import extras
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

PathLike = str | os.PathLike[str]

ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}
#: First bytes of each format. What else a server may send is mostly a web page.
FIRST_BYTES = {
    "npz": (b"PK\x03\x04",),
    "pickle": (b"\x80",),
    "tar": (b"\x1f\x8b",),
    "torch": (b"PK\x03\x04", b"\x80"),
    "torchscript": (b"PK\x03\x04",),
}


class State(StrEnum):
    """What is known of a file on this machine."""

    PRESENT = "present"
    UNPINNED = "unpinned"
    MISSING = "missing"
    WRONG = "wrong hash"
    UNREADABLE = "unreadable"


def state(asset: Asset, folder: PathLike | None = None) -> State:
    """The state of the file on disk; a known hash is computed and compared each time."""
    return look(asset, asset.path(folder))[0]


def describe(asset: Asset, folder: PathLike | None = None) -> dict[str, Any]:
    """Everything that is known of a file, with its state, path and problem, ready for JSON."""
    path = asset.path(folder)
    current, actual = look(asset, path)
    return asset.model_dump(mode="json") | {
        "state": current.value,
        "path": str(path.absolute()),
        "problem": _sentence(asset, path, current, actual),
    }


def problem(asset: Asset, folder: PathLike | None = None) -> str | None:
    """Why the file cannot be used, as one sentence with the fix; None if it can.

    The sentence says what the file is, where it comes from, its hash, and where to put it. A file
    without a known hash can be used, unless its format executes.
    """
    path = asset.path(folder)
    return _sentence(asset, path, *look(asset, path))


def look(asset: Asset, path: Path) -> tuple[State, str]:
    """The state of ``path``, and its size, hash or error where that differs from the expected."""
    try:
        if asset.kind == "folder":
            complete = path.is_dir() and all((path / name).exists() for name in asset.contains)
            return (State.UNPINNED if complete else State.MISSING), ""
        if not path.is_file():
            return State.MISSING, ""
        size = path.stat().st_size
        if asset.size is not None and size != asset.size:
            return State.WRONG, f"{size:,} bytes"
        if asset.hash is None:
            os.close(os.open(path, os.O_RDONLY))
            return State.UNPINNED, ""
        algorithm, _, digits = asset.hash.partition(":")
        with open(path, "rb") as file:
            new = hashlib.new(algorithm, usedforsecurity=False)
            actual = hashlib.file_digest(file, lambda: new).hexdigest()
    except OSError as error:
        return State.UNREADABLE, os.strerror(error.errno) if error.errno else str(error)
    if not actual.startswith(digits):
        return State.WRONG, f"{ALGORITHMS[algorithm]} {actual}"
    return State.PRESENT, ""


def _sentence(asset: Asset, path: Path, current: State, actual: str) -> str | None:
    place, name = shown(path), f"{asset.title} ({asset.name})"
    if asset.executes and asset.sha256 is None:
        return (
            f"{name} runs code when it is loaded and is refused because its SHA-256 is not known: "
            f"write it as `hash` of {asset.name} into {LIST}"
        )
    if current is State.WRONG:
        return (
            f"{place} is not {name}: it has {actual}, expected {expected(asset)}; delete it and "
            f"{remedy(asset, place)}"
        )
    if current is State.MISSING:
        return f"{name} is missing: {remedy(asset, place)}"
    if current is State.UNREADABLE:
        return (
            f"{name} cannot be read at {place} ({actual}): ask the folder's owner for the "
            "permission, or let CTM_ASSETS name a folder that you can read"
        )
    return None


def expected(asset: Asset) -> str:
    """The file's size and hash as far as they are known, in words; empty if neither is."""
    parts = [] if asset.size is None else [f"{asset.size:,} bytes"]
    if asset.hash is not None:
        algorithm, _, digits = asset.hash.partition(":")
        cut = "…" if algorithm == "sha256" and len(digits) < 64 else ""
        pinned = f" ({asset.hash_from})" if asset_pins.NAME in (asset.hash_from or "") else ""
        parts.append(f"{ALGORITHMS[algorithm]} {digits}{cut}{pinned}")
    return " and ".join(parts)


def remedy(asset: Asset, place: str) -> str:
    """Where to get a file and where to put it."""
    if asset.package is not None:
        return f"{extras.remedy(asset.package)}; it has {place}"
    known = expected(asset) or ("" if asset.kind == "folder" else "no hash is known")
    facts = "; ".join(part for part in (known, f"licence: {asset.licence}") if part)
    if not asset.urls:
        return f"get it by hand from {asset.by_hand} ({facts}) and put it at {place}"
    refused = asset.runs_code and asset.sha256 is None
    command = "" if refused else f"run `ctm assets fetch {asset.name}`, or "
    return f"{command}fetch {' or '.join(asset.urls)} ({facts}) and put it at {place}"


def shown(path: Path) -> str:
    """The path, relative where it lies below the working directory."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)


# -- pins -----------------------------------------------------------------------------------------


def pin_present(
    assets: Sequence[Asset], folder: PathLike | None = None, *, say: Callable[[str], None] = print
) -> None:
    """Pin those files that are present without a known hash, where that is allowed and possible.

    For the first use by a workflow: nothing is refused, and a folder without write permission is
    only mentioned.
    """
    for asset in assets:
        path = asset.path(folder)
        if asset.kind == "folder" or asset.runs_code or asset.hash is not None:
            continue
        if look(asset, path)[0] is State.UNPINNED:
            try:
                say(f"{asset.name}: {pin_file(asset, path)}")
            except (OSError, UserError) as error:
                say(f"{asset.name}: not pinned ({error})")


def pin_given(asset: Asset, sha256: str) -> Asset:
    """Pin a hash that a person states; the asset with that hash.

    Raises
    ------
    UserError
        If another hash is known already.
    """
    listed = asset.hash or "sha256:"
    if asset.kind == "folder" or not f"sha256:{sha256}".startswith(listed):
        known = expected(asset) or "no hash because it is a folder"
        raise UserError(
            f"--sha256: {asset.title} ({asset.name}) has {known}, not SHA-256 {sha256}"
        )
    path = _lock_path()
    return asset.pinned(asset_pins.write(path, asset.name, sha256, None, "given"), path)


def pin_file(asset: Asset, path: Path) -> str:
    """Pin the hash of a file that is present; what was done, in words.

    Raises
    ------
    UserError
        If its first bytes are not those of its format.
    """
    if foreign := unlike(asset, path):
        raise UserError(
            f"{shown(path)} is {foreign} and not {asset.title} ({asset.name}); delete it and "
            f"{remedy(asset, shown(path))}"
        )
    digest = sha256_file(path)
    lock = _lock_path()
    asset_pins.write(lock, asset.name, digest, path.stat().st_size, "first use")
    return f"its SHA-256 {digest} is pinned in {shown(lock)}"


def unlike(asset: Asset, path: Path) -> str | None:
    """What a file is instead, if its first bytes are not those of the asset's format."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(FIRST_BYTES.get(asset.format, (b"",))):
        return None
    kind = "a web page" if head.lstrip()[:1] == b"<" else f"a file that begins with {head!r}"
    return f"{kind}, not a file of the format {asset.format},"


def _lock_path() -> Path:
    return list_path().with_name(asset_pins.NAME)
