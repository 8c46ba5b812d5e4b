"""ImageNet 64×64: ILSVRC2012 (Russakovsky et al., 2015), shrunk as for ADM, EDM, CM and CTM.

The source is a folder of the original photographs::

    train/<wnid>/*.JPEG                      1,281,167 files of 1,000 classes
    val/<wnid>/*.JPEG                        50,000 files, or
    val/*.JPEG and LOC_val_solution.csv      as Kaggle packs them, or
    val/*.JPEG and val_labels.txt            lines of a file's name and its wnid

Classes are the sorted names of the folders (wnids) under ``train``, so that class 0 is n01440764.
The split ``test`` is what ILSVRC2012 calls validation; its own test set has no labels.

``_shrink.py`` has the recipe. The result is not the "downsampled ImageNet 64×64" of image-net.org,
whose images differ enough to change FID. Mirrored images count as images of the set.
"""

import csv
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ctm_core.data import assets
from ctm_core.data.picture_files import Listing, list_pictures
from ctm_core.data.readers._chunks import make_chunks
from ctm_core.data.readers._reader import Images
from ctm_core.data.readers._shrink import decoder, shrink
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import printable, read_bytes

#: ILSVRC2012's own counts; the source names the classes.
TRAITS: dict[str, Any] = {
    "splits": ("train", "test"),
    "counts": {"train": 1_281_167, "test": 50_000},
    "shape": (3, 64, 64),
    "classes": 1000,
    "flip": True,
    "assets": ("ilsvrc2012",),
}

SHAPE, FILES, CLASSES = TRAITS["shape"], TRAITS["counts"], TRAITS["classes"]
FOLDERS = {"train": "train", "test": "val"}
WNID = re.compile(r"n\d{8}")
#: More unreadable files than this share, and than ten, mean that the copy is corrupt.
LARGEST_LOSS = 0.01
RECIPE = "RGB; box halvings while the shorter side >= 128; bicubic to 64; central 64x64"
REMEDY = (
    "get ILSVRC2012 from https://image-net.org/download-images, unpack it into train/<wnid>/ and "
    "val/<wnid>/, and name the folder above these two with --source or put it at ILSVRC2012 in "
    "the assets folder"
)
logger = logging.getLogger(__name__)


def read(split: str, source: str | None, downloads: Path, workers: int) -> Images:
    """One split, computed; unreadable files are left out and listed.

    Raises
    ------
    UserError
        If the folder is not laid out as above, or more than 1% of the files are unreadable.
    """
    root = Path(source) if source is not None else assets.assets_folder() / "ILSVRC2012"
    if not root.is_dir():
        raise UserError(f"ImageNet: the folder {root} does not exist; {REMEDY}")
    classes, files = _listed(root, split)
    names = [name for name, _ in files]
    recipe = f"{RECIPE}; {decoder()}"
    scratch = downloads / f"imagenet64-{split}"
    chunks = make_chunks(
        root,
        names,
        shrink,
        SHAPE,
        scratch,
        recipe=recipe,
        workers=workers,
        title=f"imagenet64 {split}",
    )
    for name, reason in chunks.skipped:
        logger.warning("left out: %s (%s)", printable(str(root / name)), reason)
    lost = len(chunks.skipped)
    if lost > max(10, LARGEST_LOSS * len(files)) or lost == len(files):
        raise UserError(
            f"ImageNet: {lost:,} of {len(files):,} files under {root / FOLDERS[split]} are "
            f"unreadable, too many for a whole copy; replace them and delete {scratch}"
        )
    labels = np.array([label for _, label in files], dtype=np.int64)[chunks.kept]
    complete = (len(labels), len(classes)) == (FILES[split], CLASSES)
    if not complete:
        logger.warning(
            "imagenet64 %s: %s images of %s classes, where ILSVRC2012 has %s of %s",
            split,
            *(f"{n:,}" for n in (len(labels), len(classes), FILES[split], CLASSES)),
        )
    return Images(
        shape=SHAPE,
        labels=labels,
        chunks=chunks,
        source="ILSVRC2012",
        source_files=((FOLDERS[split], chunks.sha256),),
        class_names=tuple(classes),
        preparation={
            "recipe": RECIPE,
            "decoder": decoder(),
            "files": len(files),
            "skipped": [{"name": name, "reason": reason} for name, reason in chunks.skipped],
            "complete": complete,
        },
        scratch=scratch,
    )


def _listed(root: Path, split: str) -> tuple[list[str], list[tuple[str, int]]]:
    """The classes, and (name below ``root``, class) of every file in the order of the names."""
    folder = root / FOLDERS[split]
    train = _folders(root / FOLDERS["train"])
    own = _folders(folder)
    if not folder.is_dir() or (split == "train" and not train):
        if _folders(root):
            raise UserError(
                f"ImageNet: {root} itself holds the folders of the classes; they belong into "
                f"{folder}, and --source names the folder above"
            )
        raise UserError(f"ImageNet: {folder} has no folders of classes (n01440764 …); {REMEDY}")
    if own:
        classes = train or own
        if foreign := sorted(set(own) - set(classes)):
            raise UserError(f"ImageNet: {folder} has the class {foreign[0]}, which train lacks")
        listings = {wnid: list_pictures(folder / wnid, nested=False) for wnid in own}
        files = [(f"{wnid}/{name}", wnid) for wnid in own for name in listings[wnid].files]
        other = [f"{wnid}/{name}" for wnid in own for name in listings[wnid].left_out]
    else:
        pictures, other = list_pictures(folder, nested=False)
        table, wnids = _table(root, folder)
        known = set(train or wnids.values())
        classes = sorted(known)
        files = [(name, wnids.get(Path(name).stem, "")) for name in pictures]
        for name, wnid in files:
            if wnid not in known:
                problem = f"gives the unknown class {wnid} to" if wnid else "has no line for"
                raise UserError(
                    f"ImageNet: {table} {problem} {printable(name)}; correct the table"
                )
    if not files:
        raise UserError(f"ImageNet: {folder} holds no images; {REMEDY}")
    if sentence := Listing([], other).describe_left_out():
        logger.warning("left out below %s: %s", printable(str(folder)), sentence)
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    return classes, [(f"{folder.name}/{name}", numbers[wnid]) for name, wnid in files]


def _table(root: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """The table with the classes of a folder without class folders; wnids by file name's stem."""
    tables = ("LOC_val_solution.csv", "val_labels.txt")
    # Kaggle's table is three folders up from ILSVRC/Data/CLS-LOC.
    places = (root, folder, *root.absolute().parents[:3])
    path = next((d / n for n in tables for d in places if (d / n).is_file()), None)
    if path is None:
        raise UserError(
            f"ImageNet: {folder} has no folders of classes and there is no {' or '.join(tables)} "
            f"in {root} to tell the classes of its files; {REMEDY}"
        )
    try:
        lines = read_bytes(path).decode().splitlines()
        if path.suffix == ".csv":
            rows = list(csv.reader(lines))[1:]  # below the header
        else:
            rows = [line.split() for line in lines]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"ImageNet: {path} is not a text file ({error}); correct it") from None
    wnids = {}
    for number, row in enumerate((row for row in rows if row), start=1):
        # Kaggle's second column goes on with boxes: "n01440764 10 20 30 40".
        words = row[1].split() if len(row) > 1 else []
        if not words or not WNID.fullmatch(words[0]):
            raise UserError(
                f"ImageNet: entry {number} of {path} is not a name and a wnid; correct it"
            )
        wnids[Path(row[0]).stem] = words[0]
    return path, wnids


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if WNID.fullmatch(e.name) and e.is_dir())
