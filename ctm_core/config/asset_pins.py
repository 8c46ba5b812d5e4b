"""``assets.lock``: hashes of files whose publishers state none, as this project first met them.

A JSON file next to ``config/assets.yaml``, to be committed with it, so that everyone who works
from the repository compares with the same hash. By an asset's name:

======  ===============================================================================
key     meaning
======  ===============================================================================
sha256  64 hexadecimal digits
size    in bytes; null if only the hash was given
on      the day, YYYY-MM-DD
by      ``first use``: computed from the file that was there first; ``given``: stated by a
        person (``ctm assets fetch NAME --sha256 …``)
======  ===============================================================================

To accept another file, delete its entry.
"""

from __future__ import annotations

import datetime
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, RootModel

from ctm_core.config import validated
from ctm_core.config._section import Section, Text
from ctm_core.runtime.files import read_json, write_json

NAME = "assets.lock"


class Pin(Section):
    """The hash of one file."""

    sha256: str = Field(max_length=64, pattern=r"^[0-9a-f]{64}$")
    size: int | None = Field(ge=0, le=2**60)
    on: datetime.date
    by: Literal["first use", "given"]


class _Pins(RootModel[dict[Text, Pin]]):
    root: dict[Text, Pin] = Field(max_length=1000)


def read(path: Path) -> dict[str, Pin]:
    """The pins in a lock file, by name; none if the file does not exist."""
    if not path.exists():
        return {}
    return dict(validated(_Pins, read_json(path), path).root)


def write(
    path: Path, name: str, sha256: str, size: int | None, by: Literal["first use", "given"]
) -> Pin:
    """Pin a file's hash, keeping what others pin at the same time; an equal pin is left alone."""
    with _alone(path.parent):
        known = read(path)
        old = known.get(name)
        if old is not None and old.sha256 == sha256:
            return old
        pin = Pin(sha256=sha256, size=size, on=datetime.date.today(), by=by)
        known[name] = pin
        write_json(path, {n: known[n].model_dump(mode="json") for n in sorted(known)})
    return pin


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other writers of the folder's lock file waiting."""
    with open(folder / "assets.yaml", "rb") as file:
        with suppress(OSError):  # file systems without locks: the last writer wins
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
