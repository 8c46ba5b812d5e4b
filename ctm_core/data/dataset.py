"""Data sets as one memory-mapped uint8 array, labels, and a manifest.

A prepared split is a folder of three files:

``images.npy``
    uint8 of shape (N, C, H, W), levels 0 … 255.
``labels.npy``
    int64 of shape (N,).
``manifest.json``
    Name, split, shape, classes, source, SHA-256 of every file, and the fingerprint: SHA-256 over
    shape, image bytes and label bytes, which every later result carries. A reader that computes
    its images adds how, under ``preparation``. It is written last: a folder with a manifest is
    complete.

Own images have ``mean.png`` and ``contact.png``, a sheet of a hundred images, beside them.

Networks see :math:`x = v / 127.5 - 1 \\in [-1, 1]` of a level v (:func:`to_float`).

Each module of ``readers/`` is a data set (see ``readers/_reader.py``).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctm_core.config.datasets import Dataset as Section
from ctm_core.config.datasets import traits
from ctm_core.data import readers
from ctm_core.data.readers._reader import Images
from ctm_core.runtime.arrays import load_array, save_array, write_header
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import (
    atomic_write,
    identity,
    read_record,
    remove_tree,
    sha256_file,
    write_record,
)

if TYPE_CHECKING:
    import torch

FORMAT = 1
AGAIN = "run `ctm data` again"
MANIFEST_TYPES = {
    "name": str,
    "split": str,
    "shape": list,
    "count": int,
    "classes": int,
    "class_names": list,
    "flip": bool,
    "source": str,
    "source_files": list,
    "files": dict,
    "fingerprint": str,
    "format": int,
}
FILES = ("images.npy", "labels.npy")


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 levels 0 … 255 to float32 in [-1, 1]: x = v / 127.5 - 1."""
    return images.float() / 127.5 - 1.0


@dataclass(frozen=True)
class Dataset:
    """A prepared split.

    Attributes
    ----------
    path
        Its folder.
    images
        uint8 of shape (N, C, H, W), memory-mapped and read-only.
    labels
        int64 of shape (N,).
    manifest
        The content of ``manifest.json``.
    """

    path: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def split(self) -> str:
        return str(self.manifest["split"])

    @property
    def channels(self) -> int:
        return int(self.images.shape[1])

    @property
    def resolution(self) -> int:
        """Height, equal to width."""
        return int(self.images.shape[2])

    @property
    def classes(self) -> int:
        return int(self.manifest["classes"])

    @property
    def class_names(self) -> list[str]:
        return [str(name) for name in self.manifest["class_names"]]

    @property
    def flip(self) -> bool:
        """Whether a mirrored image is an image of the same set."""
        return bool(self.manifest["flip"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def batch(
        self, indices: torch.Tensor | NDArray[np.int64] | list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels by index.

        Returns
        -------
        (images, labels)
            uint8 of shape (B, C, H, W) and int64 of shape (B,), copies in memory.
        """
        import torch  # not with the module, which worker processes of readers import too

        rows = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])


def prepare(
    name: str,
    split: str,
    source: str | None,
    output: str | Path,
    *,
    workers: int | None = None,
    section: Section | None = None,
) -> Dataset:
    """Read a data set from its source and write it as images, labels and manifest.

    Equal sources give equal files, so running it again changes nothing. Files fetched from a URL
    are kept in ``downloads`` next to ``output``. A long preparation also keeps its finished pieces
    there until the manifest is written, so that it continues after a kill.

    Parameters
    ----------
    name, split
        As :func:`ctm_core.config.datasets.traits` and its ``splits`` know them.
    source
        A folder, file or URL; None takes the data set's default.
    output
        The folder to write.
    workers
        Processes for a data set whose images are computed; None takes one per CPU that
        this process may use. The result does not depend on it.
    section
        The experiment's section ``dataset``, for a data set of own images.

    Raises
    ------
    UserError
        If name or split is unknown, or the source is missing, corrupt or another data set.
    """
    own = section is not None and section.reader is not None
    known = section.traits if section is not None else traits(name)
    if section is not None and section.name != name:
        raise UserError(f"the experiment's dataset is {section.name}, not {name}")
    if known.own and not own:
        raise UserError(
            f"{name} reads your own images: describe them in the section dataset of an experiment "
            "and give its file as --config"
        )
    if section is not None and source is None:
        source = section.source
    if split not in known.splits:
        raise UserError(
            f"the dataset {name} has no split {split!r}; it has {' and '.join(known.splits)}"
        )
    if problem := known.source_problem(source):
        raise UserError(f"the dataset {name} {problem}")
    reader = section.reader if section is not None and section.reader else name
    module = importlib.import_module(f"{readers.__name__}.{reader.replace('-', '_')}")
    output = Path(output)
    downloads = output.parent / "downloads"
    # A batch system gives a job fewer CPUs than the node has.
    workers = workers or len(os.sched_getaffinity(0))
    images: Images = module.read(split, source, downloads, workers, *([section] if own else []))
    class_names = known.class_names if images.class_names is None else images.class_names
    shape = (len(images.labels), *images.shape)

    # Without a manifest, the folder counts as incomplete from here on.
    (output / "manifest.json").unlink(missing_ok=True)
    fingerprint = hashlib.sha256(struct.pack("<4q", *shape))
    with atomic_write(output / "images.npy") as temporary, open(temporary, "wb") as file:
        # Not memory-mapped: on a full disk a write raises, but a mapped page kills the process.
        write_header(file, shape, np.uint8)
        count = 0
        total = np.zeros(images.shape)
        for chunk in images.chunks:
            if chunk.dtype != np.uint8 or chunk.shape[1:] != images.shape:
                raise ValueError(f"the reader of {name} gave {chunk.dtype} {chunk.shape}")
            data = np.ascontiguousarray(chunk).data
            fingerprint.update(data)
            file.write(data)
            count += len(chunk)
            total += chunk.sum(0, dtype=np.int64) if own else 0
    if count != len(images.labels):
        raise ValueError(f"the reader of {name} gave {count} images, {len(images.labels)} labels")
    labels = np.ascontiguousarray(images.labels, dtype="<i8")
    fingerprint.update(labels.tobytes())
    save_array(output / "labels.npy", labels)
    manifest = {
        "name": name,
        "split": split,
        "shape": list(shape),
        "count": count,
        "classes": len(class_names),
        "class_names": list(class_names),
        "flip": known.flip or (section is not None and section.flip),
        "source": images.source,
        "source_files": [{"name": n, "sha256": h} for n, h in images.source_files],
        "files": {n: sha256_file(output / n) for n in FILES},
        "fingerprint": fingerprint.hexdigest(),
        "format": FORMAT,
    }
    if images.preparation:
        manifest["preparation"] = dict(images.preparation)
    if own:
        _show(output, total / count)
    write_record(output / "manifest.json", manifest)
    if images.scratch is not None:
        remove_tree(images.scratch)
    return open_dataset(output, verify=False)


def _show(output: Path, mean: NDArray[np.float64]) -> None:
    """Draw the mean image, and a hundred images evenly spaced over the classes."""
    import torch

    from ctm_core.data.pictures import save_grid

    images = load_array(output / "images.npy")
    rows = np.linspace(0, len(images) - 1, min(100, len(images))).astype(int)
    save_grid(output / "contact.png", torch.from_numpy(images[rows]))
    save_grid(output / "mean.png", torch.from_numpy(np.rint(mean).astype(np.uint8)[None]))


def open_dataset(path: str | Path, *, verify: bool = True) -> Dataset:
    """Open a prepared split, compared with its manifest.

    Parameters
    ----------
    path
        The folder that :func:`prepare` wrote.
    verify
        Also hash both files, once per process; otherwise only sizes, shapes and types are
        compared with the manifest.

    Raises
    ------
    UserError
        If a file is missing, corrupt or not the manifest's.
    """
    path = Path(path)
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} holds no prepared dataset (no manifest.json); run `ctm data`")
    manifest = read_record(path / "manifest.json", AGAIN)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}/manifest.json is not a dataset manifest of format 1; {AGAIN}")
    if missing := sorted(MANIFEST_TYPES.keys() - manifest.keys()):
        raise UserError(f"{path}/manifest.json has no {', '.join(missing)}; {AGAIN}")
    for key, kind in MANIFEST_TYPES.items():
        value = manifest[key]
        texts = value if isinstance(value, list) else [value]
        legible = key == "source" or all(str(text).isprintable() for text in texts)
        if not isinstance(value, kind) or not legible:
            raise UserError(f"{path}/manifest.json has no valid {key}; {AGAIN}")
    if manifest["classes"] != len(manifest["class_names"]):
        raise UserError(f"{path}/manifest.json does not name each of its classes; {AGAIN}")
    images, labels = (_load(path / name) for name in FILES)
    shape = list(images.shape)
    if images.dtype != np.uint8 or len(shape) != 4 or shape != manifest["shape"]:
        raise UserError(
            f"{path}/images.npy holds {images.dtype} {shape}, but its manifest says "
            f"uint8 {manifest['shape']}; {AGAIN}"
        )
    if labels.dtype != np.int64 or labels.shape != (len(images),):
        raise UserError(
            f"{path}/labels.npy holds {labels.dtype} {list(labels.shape)} for {len(images)} "
            f"images; {AGAIN}"
        )
    for name in FILES if verify else ():
        if _sha256(*identity(path / name)) != manifest["files"].get(name):
            raise UserError(f"{path / name} is not the file its manifest describes; {AGAIN}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < manifest["classes"]):
        raise UserError(
            f"{path}/labels.npy holds labels outside 0 … {manifest['classes'] - 1}; {AGAIN}"
        )
    return Dataset(path=path, images=images, labels=np.array(labels), manifest=manifest)


@functools.cache
def _sha256(path: str, *_: int) -> str:
    """Of a file, once for each inode, size and time of change."""
    return sha256_file(path)


def _load(path: Path) -> Any:
    try:
        return load_array(path)
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; {AGAIN}") from None
