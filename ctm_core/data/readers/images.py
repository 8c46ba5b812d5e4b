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

import hashlib
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctm_core.config.datasets import ASSET, Dataset
from ctm_core.data import assets
from ctm_core.data.picture_files import LARGEST_FILE, Listing, Refused, decode, list_pictures
from ctm_core.data.readers._chunks import CHUNK, make_chunks
from ctm_core.data.readers._download import is_url
from ctm_core.data.readers._reader import Images
from ctm_core.data.readers._shrink import decoder, square
from ctm_core.data.readers._unpack import unpack
from ctm_core.runtime.arrays import Archive, load_array
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, identity, remove_tree, sha256_file
from ctm_core.runtime.untrusted import parse_json, printable, read_bytes

TRAITS = {"splits": ("train", "test"), "flip": False, "source": "required", "own": True}

LABELS = "dataset.json"
#: Pictures that are not read; leaving them out would be a silent loss.
OTHER_FORMATS = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm")
#: The classes of a set without classes.
SINGLE = ("all",)
logger = logging.getLogger(__name__)


def read(split: str, source: str, downloads: Path, workers: int, section: Dataset) -> Images:
    """One split, as the experiment's section ``dataset`` says.

    Raises
    ------
    UserError
        If the source is missing, is laid out otherwise, changes meanwhile, or holds a picture
        that cannot be taken.
    """
    if is_url(source):
        raise UserError(f"{section.name}: {source} is not fetched; download it and name the file")
    own = source.startswith(ASSET)
    path = assets.require(source.removeprefix(ASSET)) if own else Path(source)
    if not path.exists():
        raise UserError(f"{section.name}: the source {path} does not exist; correct the path")
    scratch = downloads / f"{section.name}-{split}"
    if path.suffix.lower() in (".npy", ".npz") and not path.is_dir():
        return _from_arrays(split, path, scratch, section)
    with _discarding(scratch):
        archive = None if path.is_dir() else unpack(path, scratch / "unpacked")
        root = _root(path if archive is None else scratch / "unpacked", path)
        classes, files = _listed(root, path, split, section)
        stamp = archive or _stamp(root, files)
        names = _held_out(root, [*files], split, workers, section)
        size = _first_size(root / names[0]) if section.crop == "none" else None
    recipe = f"{section.filter} to {section.resolution}; {decoder()}"
    chunks = make_chunks(
        root,
        names,
        partial(convert, section=section, size=size),
        section.shape or (0, 0, 0),
        scratch / "chunks",
        recipe=f"{recipe}; {section.settings}; {size}; {stamp}",
        workers=workers,
        title=f"{section.name} {split}",
    )
    with _discarding(scratch):
        if chunks.skipped:
            name, reason = chunks.skipped[0]
            _refuse_pictures(section, len(chunks.skipped), len(names), f"{name} of {path}", reason)
        if archive is None and stamp != _stamp(root, _listed(root, path, split, section)[1]):
            raise UserError(f"{path} changed while it was read; run again when it is complete")
    labels = [files[name] for name in names]
    entry = (path.name, chunks.sha256 if archive is None else archive)
    return _images(section, classes, labels, chunks, entry, recipe, scratch)


def convert(
    content: bytes, *, section: Dataset, size: tuple[int, int] | None
) -> NDArray[np.uint8]:
    """The content of a PNG or JPEG file as uint8 (C, side, side); raises :class:`Refused`."""
    return _fit(decode(content), section, size)


def _fit(image: Image.Image, section: Dataset, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    assert section.resolution is not None
    if section.crop == "none" and (image.width != image.height or size not in (None, image.size)):
        wanted = "a square" if size is None else f"{size[0]} x {size[1]} as the first"
        raise Refused(
            f"it has {image.width} x {image.height} pixels, not {wanted}; `crop: centre` takes "
            "any size"
        )
    pixels = np.asarray(
        square(
            image.convert("L" if section.channels == 1 else "RGB"),
            section.resolution,
            section.filter,
        )
    )
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _images(
    section: Dataset,
    classes: Sequence[str],
    labels: Sequence[int],
    chunks: Iterable[NDArray[np.uint8]],
    file: tuple[str, str],
    recipe: str,
    scratch: Path,
) -> Images:
    counts = Counter(labels)
    return Images(
        shape=section.shape or (0, 0, 0),
        labels=np.array(labels, dtype=np.int64),
        chunks=chunks,
        source=f"own images: {file[0]}",
        source_files=(file,),
        class_names=tuple(classes),
        preparation={
            "settings": section.settings,
            "recipe": recipe,
            "counts": [counts[number] for number in range(len(classes))],
        },
        scratch=scratch,
    )


@contextmanager
def _discarding(scratch: Path) -> Iterator[None]:
    """Remove what is half made of a source that is refused."""
    try:
        yield
    except UserError:
        remove_tree(scratch)
        with suppress(OSError):  # other files may be there
            scratch.parent.rmdir()
        raise


def _refuse_pictures(section: Dataset, bad: int, total: int, first: str, reason: str) -> NoReturn:
    raise UserError(
        f"{section.name}: {bad:,} of {total:,} images cannot be taken; the first is "
        f"{printable(first)}: {reason}; correct or remove it"
    )


# -- folders ------------------------------------------------------------------------------------


def _root(folder: Path, source: Path) -> Path:
    """The folder itself, or the one that is all it holds."""
    while True:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".")]
        if any(e.is_symlink() and e.is_dir() for e in visible):
            raise UserError(f"{source} holds links to folders, which are not followed; copy them")
        if len(visible) != 1 or not visible[0].is_dir() or visible[0].name in ("train", "test"):
            return folder
        folder = folder / visible[0].name


def _listed(
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
    _check_counts(classes, files.values(), source)
    if split == "test" and not section.test_fraction:
        own, files = _labelled(root / "test", source, section)
        if foreign := sorted(set(own) - set(classes)):
            raise UserError(f"{source}: test has the class {printable(foreign[0])}, train has not")
        files = {name: classes.index(own[label]) for name, label in files.items()}
        return classes, {f"test/{name}": label for name, label in files.items()}
    return classes, {f"train/{n}": c for n, c in files.items()} if layered else files


def _labelled(folder: Path, source: Path, section: Dataset) -> tuple[list[str], dict[str, int]]:
    """The classes, and the class of every picture by its sorted name."""
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
    if section.classes == "none":
        return [*SINGLE], dict.fromkeys(names, 0)
    if (folder / LABELS).is_file():
        numbers = _from_json(folder / LABELS, names, source)
        if numbers is not None:
            return _numbered(numbers.values(), source), numbers
        return [*SINGLE], dict.fromkeys(names, 0)
    tops = {name: name.partition("/")[0] if "/" in name else "" for name in names}
    classes = sorted(set(tops.values()))
    if classes == [""]:
        return [*SINGLE], dict.fromkeys(names, 0)
    if classes[0] == "":
        loose = next(name for name, top in tops.items() if not top)
        raise UserError(
            f"{source} holds pictures beside folders of classes, such as {printable(loose)}; "
            "sort them into the folders, or set dataset.classes to none"
        )
    if ugly := [name for name in classes if not name.isprintable()]:
        raise UserError(f"{source}: {printable(ugly[0])} cannot name a class; rename the folder")
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, {name: numbers[top] for name, top in tops.items()}


def _from_json(path: Path, names: Sequence[str], source: Path) -> dict[str, int] | None:
    """The label of every picture; None if the file has no labels."""
    held = parse_json(read_bytes(path), path)
    labels = held.get("labels") if isinstance(held, dict) else held
    if labels is None:
        return None
    numbers: dict[str, int] = {}
    for pair in labels if isinstance(labels, list) else [labels]:
        match pair:
            case [str(name), int(label)] if not isinstance(label, bool) and label >= 0:
                if numbers.setdefault(name, label) != label:
                    raise UserError(f"{LABELS} of {source} labels {printable(name)} twice")
            case _:
                raise UserError(
                    f"{LABELS} of {source}: expected pairs of a file's name and its number, but "
                    f"got {printable(str(pair), 80)}; correct it"
                )
    if missing := sorted(numbers.keys() - set(names)):
        raise UserError(
            f"{LABELS} of {source} labels {len(missing):,} files that are missing, the first is "
            f"{printable(missing[0])}; add the files or correct it"
        )
    if unlabelled := [name for name in names if name not in numbers]:
        raise UserError(
            f"{LABELS} of {source} has no label for {len(unlabelled):,} files, the first is "
            f"{printable(unlabelled[0])}; add labels, or set dataset.classes to none"
        )
    return {name: numbers[name] for name in names}


def _numbered(labels: Iterable[int], source: Path) -> list[str]:
    """Classes that only have numbers."""
    labels = [*labels]
    if max(labels) >= len(labels):
        raise UserError(f"{source}: the label {max(labels)} is too large for {len(labels)} images")
    return [str(number) for number in range(max(labels) + 1)]


def _check_counts(classes: Sequence[str], labels: Iterable[int], source: Path) -> None:
    counts = Counter(labels)
    for number, name in enumerate(classes):
        if counts[number] < 2:
            what = f"the class {printable(name)} of {source}" if len(classes) > 1 else str(source)
            raise UserError(
                f"{what} has {'only one picture' if counts[number] else 'no picture'}; at least "
                "two are needed"
            )


def _held_out(
    root: Path, names: list[str], split: str, workers: int, section: Dataset
) -> list[str]:
    """Those of one split; equal files are on the same side."""
    if not section.test_fraction:
        return names

    def tested(name: str) -> bool:
        return _is_test(sha256_file(root / name), section)

    with ThreadPoolExecutor(workers) as pool:
        sides = list(pool.map(tested, names))
    return [
        name for name, test in zip(names, sides, strict=True) if test == (split == "test")
    ] or _no_images(split, section)


def _is_test(digest: str, section: Dataset) -> bool:
    return int(digest[:8], 16) < section.test_fraction * 2**32


def _no_images(split: str, section: Dataset) -> NoReturn:
    raise UserError(
        f"{section.name}: no image falls into {split}; change dataset.test_fraction, which is "
        f"{section.test_fraction}"
    )


def _stamp(root: Path, names: Iterable[str]) -> str:
    """Changes with the size or time of any file."""
    digest = hashlib.sha256()
    for name in names:
        try:
            now = os.stat(root / name)
        except OSError as error:
            raise UserError(
                f"{printable(str(root / name))} cannot be read ({error.strerror}); restore or "
                "remove it"
            ) from None
        digest.update(os.fsencode(f"{now.st_size} {now.st_mtime_ns} {name}\n"))
    return digest.hexdigest()


def _first_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture; None if it cannot be read, which is refused later."""
    with suppress(Refused, UserError):
        return decode(read_bytes(path, LARGEST_FILE)).size
    return None


# -- arrays -------------------------------------------------------------------------------------


def _from_arrays(split: str, path: Path, scratch: Path, section: Dataset) -> Images:
    """From a .npy or .npz file: converted in one pass into the scratch folder."""
    if split == "test" and not section.test_fraction:
        raise UserError(
            f"{path} has no split test; set dataset.test_fraction of {section.name} to hold "
            "images out"
        )
    before = identity(path)
    with _discarding(scratch), ExitStack() as stack:
        rows: Iterable[NDArray[Any]]
        if path.suffix.lower() == ".npy":
            array = load_array(path)
            shape, kind, labelled = array.shape, array.dtype, False
            rows = (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))
        else:
            archive = stack.enter_context(Archive(path))
            if "arr_0" not in archive.names:
                raise UserError(f"{path} has no arr_0, the images; save them under this name")
            shape, kind = archive.header("arr_0")
            rows = archive.rows("arr_0", CHUNK)
            labelled = "arr_1" in archive.names and section.classes == "names"
        axes = _axes(shape, kind, path)
        labels, classes = np.zeros(shape[0], np.int64), [*SINGLE]
        if labelled:
            lengths, number = archive.header("arr_1")
            if lengths == shape[:1] and number.kind in "iu":
                labels = np.concatenate([*archive.rows("arr_1", CHUNK)]).astype(np.int64)
            if lengths != shape[:1] or number.kind not in "iu" or labels.min() < 0:
                raise UserError(
                    f"{path}: arr_1 is not one label per image, a number from 0; correct it"
                )
            classes = _numbered(labels.tolist(), path)
        _check_counts(classes, labels.tolist(), path)
        kept = _convert_rows(rows, axes, split, scratch / "images", path, section)
        if identity(path) != before:
            raise UserError(f"{path} changed while it was read; run again when it is complete")
        if not kept.any():
            _no_images(split, section)
    size = (int(kept.sum()), *(section.shape or ()))
    images = np.memmap(scratch / "images", np.uint8, "r", shape=size)
    chunks = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
    entry, recipe = (
        (path.name, sha256_file(path)),
        f"{section.filter} to {section.resolution}; {decoder()}",
    )
    return _images(section, classes, labels[kept].tolist(), chunks, entry, recipe, scratch)


def _axes(shape: tuple[int, ...], kind: Any, path: Path) -> tuple[int, ...] | None:
    """How an image's axes become (H, W, C); None if it has no channels."""
    if kind == np.uint8 and len(shape) in (3, 4) and math.prod(shape):
        if len(shape) == 3:
            return None
        if shape[3] in (1, 3):
            return (0, 1, 2)
        if shape[1] in (1, 3):
            return (1, 2, 0)
    raise UserError(
        f"{path}: expected uint8 images of shape (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or "
        f"3, but got {kind} of shape {shape}"
    )


def _convert_rows(
    rows: Iterable[NDArray[np.uint8]],
    axes: tuple[int, ...] | None,
    split: str,
    output: Path,
    path: Path,
    section: Dataset,
) -> NDArray[np.bool_]:
    """Write the images of a split one after the other; tell which those are."""
    kept: list[bool] = []
    size: tuple[int, int] | None = None
    with atomic_write(output) as temporary, open(temporary, "wb") as file:
        for number, row in enumerate(itertools.chain.from_iterable(rows)):
            digest = hashlib.sha256(row.tobytes()).hexdigest()
            kept.append(_is_test(digest, section) == (split == "test"))
            if not kept[-1]:
                continue
            pixels = np.ascontiguousarray(row if axes is None else row.transpose(axes))
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
            size = size or image.size
            try:
                file.write(_fit(image, section, size).data)
            except Refused as reason:
                _refuse_pictures(section, 1, number + 1, f"number {number} of {path}", f"{reason}")
    return np.array(kept, bool)
