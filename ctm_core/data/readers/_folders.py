"""The pictures of a split in a folder of own images, with their classes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ctm_core.config.datasets import Dataset
from ctm_core.data.picture_files import Listing, list_pictures
from ctm_core.data.readers._classes import LABELS, check_counts, classify
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import printable

#: Pictures that are not read; leaving them out would be a silent loss.
OTHER_FORMATS = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm")
logger = logging.getLogger(__name__)


def find_root(folder: Path, source: Path) -> Path:
    """The folder itself, or the one that is all it holds."""
    while True:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".")]
        if any(e.is_symlink() and e.is_dir() for e in visible):
            raise UserError(f"{source} holds links to folders, which are not followed; copy them")
        if len(visible) != 1 or not visible[0].is_dir() or visible[0].name in ("train", "test"):
            return folder
        folder = folder / visible[0].name


def list_split(
    root: Path, source: Path, split: str, section: Dataset
) -> tuple[list[str], dict[str, int]]:
    """The classes, and the class of every picture by its sorted name below ``root``."""
    layered = (root / "train").is_dir()
    if (root / "test").is_dir() and not layered:
        raise UserError(f"{source} has a folder test but no train; rename one of its folders")
    if layered and (root / "test").is_dir() and section.test_fraction:
        raise UserError(
            f"{source} has a folder test of its own; leave dataset.test_fraction of "
            f"{section.name} out"
        )
    if split == "test" and not (root / "test").is_dir() and not section.test_fraction:
        raise UserError(
            f"{source} has no folder test; set dataset.test_fraction of {section.name} to hold "
            "images out"
        )
    classes, files = _labelled(root / "train" if layered else root, source, section)
    check_counts(classes, files.values(), source)
    if split == "test" and not section.test_fraction:
        test_classes, files = _labelled(root / "test", source, section)
        if foreign := sorted(set(test_classes) - set(classes)):
            raise UserError(f"{source}: test has the class {printable(foreign[0])}, train has not")
        files = {name: classes.index(test_classes[label]) for name, label in files.items()}
        return classes, {f"test/{name}": label for name, label in files.items()}
    return classes, {f"train/{n}": c for n, c in files.items()} if layered else files


def _labelled(folder: Path, source: Path, section: Dataset) -> tuple[list[str], dict[str, int]]:
    """The classes, and the class of every picture by its sorted name."""
    return classify(folder, _pictures(folder, source), source, section)


def _pictures(folder: Path, source: Path) -> list[str]:
    """The sorted names of the pictures; what else there is goes into the log."""
    names, other = list_pictures(folder)
    if foreign := [name for name in other if name.lower().endswith(OTHER_FORMATS)]:
        raise UserError(
            f"{source} holds {len(foreign):,} pictures in formats that are not read, the first "
            f"is {printable(foreign[0])}; convert them to PNG"
        )
    if not names:
        raise UserError(f"{source} holds no PNG or JPEG files; name the folder above them")
    if sentence := Listing([], [name for name in other if name != LABELS]).describe_left_out():
        logger.warning("left out below %s: %s", printable(str(source)), sentence)
    return names


def stamp(root: Path, names: Iterable[str]) -> str:
    """A digest that changes with the size or time of any file."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = os.stat(root / name)
        except OSError as error:
            raise UserError(
                f"{printable(str(root / name))} cannot be read ({error.strerror}); restore or "
                "remove it"
            ) from None
        digest.update(os.fsencode(f"{status.st_size} {status.st_mtime_ns} {name}\n"))
    return digest.hexdigest()
