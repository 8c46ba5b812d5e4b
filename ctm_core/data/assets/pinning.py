"""Pinning: what the hash of a file without a published one becomes when it is first used.

A hash is pinned when ``ctm assets fetch`` brings the file or finds it, and when a workflow first
uses it. Formats that can run code are never pinned so, only by a hash that a person states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ctm_core.config import asset_pins
from ctm_core.config.asset_listing import Asset, list_path
from ctm_core.data.assets.states import State, expected, look, remedy, shown
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

__all__ = ["pin_file", "pin_given", "pin_present", "unlike"]

PathLike = str | os.PathLike[str]
Say = Callable[[str], None]

#: First bytes of each format. What else a server may send is mostly a page of text.
FIRST_BYTES = {
    "npz": (b"PK\x03\x04",),
    "pickle": (b"\x80",),
    "tar": (b"\x1f\x8b",),
    "torch": (b"PK\x03\x04", b"\x80"),
    "torchscript": (b"PK\x03\x04",),
}


def pin_present(
    assets: Sequence[Asset], folder: PathLike | None = None, *, say: Say = print
) -> None:
    """Pin those files that are there without a known hash, where that is allowed and possible.

    For the first use by a workflow: nothing is refused here, and a place that cannot be written
    is only mentioned.
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
        known = expected(asset) or "no hash, for it is a folder"
        raise UserError(
            f"--sha256: {asset.title} ({asset.name}) has {known}, not SHA-256 {sha256}"
        )
    pin = asset_pins.write(_lock_path(), asset.name, sha256, None, "given")
    told = f"{_lock_path()}, {pin.by} on {pin.on}"
    return asset.model_copy(update={"hash": f"sha256:{sha256}", "hash_from": told})


def unlike(asset: Asset, path: Path) -> str | None:
    """What a file is instead, if its first bytes are not those of the asset's format."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(FIRST_BYTES.get(asset.format, (b"",))):
        return None
    kind = "a web page" if head.lstrip()[:1] == b"<" else f"a file that begins with {head!r}"
    return f"{kind}, no file of the format {asset.format},"


def pin_file(asset: Asset, path: Path) -> str:
    """Pin the hash of a file that is there; what was done, in words.

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


def _lock_path() -> Path:
    return list_path().with_name(asset_pins.NAME)
