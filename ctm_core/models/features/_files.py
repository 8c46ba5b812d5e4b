"""Weight files in the assets folder, checked against their hashes, which are computed once."""

import os
from functools import cache
from pathlib import Path

from ctm_core.data import assets
from ctm_core.runtime.files import sha256_file


def checked_file(asset: str) -> tuple[Path, str]:
    """Path and SHA-256 of an external file that is there and is what it should be."""
    path = assets.require(asset)
    facts = os.stat(path)
    return path, _digest(path.absolute(), facts.st_size, facts.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)
