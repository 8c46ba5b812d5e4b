"""Your own images: a folder, an archive of one, or arrays, resized to one square.

============================  =================================================================
source                        its classes
============================  =================================================================
folder of PNG or JPEG files   one sub-folder per class; flat: a single class
``train/``, ``test/`` above   the same in each; the classes are those of ``train``
zip, tar (.gz, .bz2, .xz)     as the folder that was packed
``dataset.json`` in either    its ``labels``, pairs of a file's name and a number (EDM, StyleGAN)
``.npz``                      ``arr_1`` (``arr_0`` holds the images), as guided diffusion packs
``.npy``                      a single class
``asset:NAME``                an entry of config/assets.yaml that is any of these
============================  =================================================================

Arrays are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W). EXIF orientation is applied. A
file that cannot be converted faithfully is refused by name; none is left out.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ctm_core.config.datasets import ASSET, Dataset
from ctm_core.data import assets
from ctm_core.data.picture_files import LARGEST_FILE, Refused, decode
from ctm_core.data.readers._chunks import make_chunks
from ctm_core.data.readers._download import is_url
from ctm_core.data.readers._folders import find_root, list_split, stamp
from ctm_core.data.readers._image_arrays import read_arrays, survey_arrays
from ctm_core.data.readers._reader import Images
from ctm_core.data.readers._split import (
    Survey,
    assemble,
    convert,
    describe_recipe,
    discarding,
    image_shape,
    is_test,
    refuse_empty,
    refuse_pictures,
)
from ctm_core.data.readers._unpack import unpack
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.runtime.untrusted import read_bytes

__all__ = ["TRAITS", "Survey", "read", "survey"]

TRAITS = {"splits": ("train", "test"), "flip": False, "source": "required", "own": True}


def read(split: str, source: str, downloads: Path, workers: int, section: Dataset) -> Images:
    """One split, as the experiment's section ``dataset`` says.

    Raises
    ------
    UserError
        If the source is missing, is laid out otherwise, changes meanwhile, or holds a picture
        that cannot be taken.
    """
    path = _locate(source, section)
    scratch = downloads / f"{section.name}-{split}"
    if _holds_arrays(path):
        return read_arrays(path, split, scratch, section)
    return _read_pictures(path, split, scratch, workers, section)


def survey(source: str, section: Dataset, looked_at: int = 0) -> Survey:
    """What a source holds, without preparing it: some pictures are decoded, none is kept.

    Parameters
    ----------
    looked_at
        How many pictures at most, evenly spaced.

    Raises
    ------
    UserError
        As :func:`read`, where listing the source or one of those pictures shows it.
    """
    path = _locate(source, section)
    if _holds_arrays(path):
        return survey_arrays(path, section)
    with TemporaryDirectory() as scratch:
        if path.is_dir():
            root = find_root(path, path)
        else:
            unpack(path, Path(scratch) / "unpacked")
            root = find_root(Path(scratch) / "unpacked", path)
        classes, files = list_split(root, path, "train", section)
        counts = {"train": round(len(files) * (1 - section.test_fraction))}
        if (root / "test").is_dir():
            counts["test"] = len(list_split(root, path, "test", section)[1])
        elif section.test_fraction:
            counts["test"] = len(files) - counts["train"]
        names, before = [*files], stamp(root, files)
        chosen = names[:: -(-len(names) // looked_at)] if looked_at else []
        looks: list[tuple[int, str]] = []  # shorter side and mode
        for name in chosen:
            try:
                picture = decode(read_bytes(root / name, LARGEST_FILE))
            except Refused as reason:
                refuse_pictures(section, 1, len(chosen), f"{name} of {path}", f"{reason}")
            looks.append((min(picture.size), picture.mode))
        if before != stamp(root, list_split(root, path, "train", section)[1]):
            raise UserError(f"{path} changed while it was read; run again when it is complete")
    channels = 1 if {mode for _, mode in looks} == {"L"} else 3
    return Survey(tuple(classes), counts, tuple(side for side, _ in looks), channels)


def _locate(source: str, section: Dataset) -> Path:
    if is_url(source):
        raise UserError(f"{section.name}: {source} is not fetched; download it and name the file")
    is_asset = source.startswith(ASSET)
    path = assets.require(source.removeprefix(ASSET)) if is_asset else Path(source)
    if not path.exists():
        raise UserError(f"{section.name}: the source {path} does not exist; correct the path")
    return path


def _holds_arrays(path: Path) -> bool:
    return path.suffix.lower() in (".npy", ".npz") and not path.is_dir()


def _read_pictures(
    path: Path, split: str, scratch: Path, workers: int, section: Dataset
) -> Images:
    """One split of a folder or an archive."""
    with discarding(scratch):
        archive = None if path.is_dir() else unpack(path, scratch / "unpacked")
        root = find_root(path if archive is None else scratch / "unpacked", path)
        classes, files = list_split(root, path, split, section)
        before = archive or stamp(root, files)
        names = _members(root, [*files], split, workers, section)
        size = _first_size(root / names[0]) if section.crop == "none" else None
    chunks = make_chunks(
        root,
        names,
        partial(convert, section=section, size=size),
        image_shape(section),
        scratch / "chunks",
        recipe=f"{describe_recipe(section)}; {section.settings}; {size}; {before}",
        workers=workers,
        title=f"{section.name} {split}",
    )
    with discarding(scratch):
        if chunks.skipped:
            name, reason = chunks.skipped[0]
            refuse_pictures(section, len(chunks.skipped), len(names), f"{name} of {path}", reason)
        if archive is None and before != stamp(root, list_split(root, path, split, section)[1]):
            raise UserError(f"{path} changed while it was read; run again when it is complete")
    labels = [files[name] for name in names]
    source_file = (path.name, archive or chunks.sha256)
    return assemble(section, classes, labels, chunks, source_file, scratch)


def _members(
    root: Path, names: list[str], split: str, workers: int, section: Dataset
) -> list[str]:
    """Those of one split; equal files are on the same side."""
    if not section.test_fraction:
        return names

    def tested(name: str) -> bool:
        return is_test(sha256_file(root / name), section)

    with ThreadPoolExecutor(workers) as pool:
        sides = list(pool.map(tested, names))
    return [
        name for name, test in zip(names, sides, strict=True) if test == (split == "test")
    ] or refuse_empty(split, section)


def _first_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture; None if it cannot be read, which is refused later."""
    with suppress(Refused, UserError):
        return decode(read_bytes(path, LARGEST_FILE)).size
    return None
