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

Networks see :math:`x = v / 127.5 - 1 \\in [-1, 1]` of a level v (:func:`to_float`).

Each module of ``readers/`` is a data set (see ``readers/_reader.py``).
"""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctm_core.config.datasets import traits
from ctm_core.data import readers
from ctm_core.data.readers._reader import Images
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, read_json, remove_tree, sha256_file, write_json

if TYPE_CHECKING:
    import torch

__all__ = ["Dataset", "open_dataset", "prepare", "to_float"]

FORMAT = 1
MANIFEST_KEYS = {
    "name",
    "split",
    "shape",
    "count",
    "classes",
    "class_names",
    "flip",
    "source",
    "source_files",
    "files",
    "fingerprint",
    "format",
}


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
    name: str, split: str, source: str | None, output: str | Path, *, workers: int | None = None
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

    Raises
    ------
    UserError
        If name or split is unknown, or the source is missing, corrupt or another data set.
    """
    known = traits(name)
    if split not in known.splits:
        raise UserError(
            f"the dataset {name} has no split {split!r}; it has {' and '.join(known.splits)}"
        )
    if problem := known.source_problem(source):
        raise UserError(f"the dataset {name} {problem}")
    module = importlib.import_module(f"{readers.__name__}.{name.replace('-', '_')}")
    output = Path(output)
    downloads = output.parent / "downloads"
    # A batch system gives a job fewer CPUs than the node has.
    workers = workers or len(os.sched_getaffinity(0))
    images: Images = module.read(split, source, downloads, workers)
    class_names = known.class_names if images.class_names is None else images.class_names
    shape = (len(images.labels), *images.shape)

    # Without a manifest, the folder counts as incomplete from here on.
    (output / "manifest.json").unlink(missing_ok=True)
    fingerprint = hashlib.sha256(struct.pack("<4q", *shape))
    with atomic_write(output / "images.npy") as temporary, open(temporary, "wb") as file:
        # Not memory-mapped: on a full disk a write raises, but a mapped page kills the process.
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        count = 0
        for chunk in images.chunks:
            if chunk.dtype != np.uint8 or chunk.shape[1:] != images.shape:
                raise ValueError(f"the reader of {name} gave {chunk.dtype} {chunk.shape}")
            data = np.ascontiguousarray(chunk).data
            fingerprint.update(data)
            file.write(data)
            count += len(chunk)
    if count != len(images.labels):
        raise ValueError(f"the reader of {name} gave {count} images, {len(images.labels)} labels")
    labels = np.ascontiguousarray(images.labels, dtype="<i8")
    fingerprint.update(labels.tobytes())
    with atomic_write(output / "labels.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, labels, allow_pickle=False)
    manifest = {
        "name": name,
        "split": split,
        "shape": list(shape),
        "count": count,
        "classes": len(class_names),
        "class_names": list(class_names),
        "flip": known.flip,
        "source": images.source,
        "source_files": [{"name": n, "sha256": h} for n, h in images.source_files],
        "files": {n: sha256_file(output / n) for n in ("images.npy", "labels.npy")},
        "fingerprint": fingerprint.hexdigest(),
        "format": FORMAT,
    }
    if images.preparation:
        manifest["preparation"] = dict(images.preparation)
    write_json(output / "manifest.json", manifest)
    if images.scratch is not None:
        remove_tree(images.scratch)
    return open_dataset(output)


def open_dataset(path: str | Path, *, verify: bool = False) -> Dataset:
    """Open a prepared split without reading its images.

    Parameters
    ----------
    path
        The folder that :func:`prepare` wrote.
    verify
        Also hash both files; otherwise sizes, shapes and types are compared with the manifest.

    Raises
    ------
    UserError
        If a file is missing, corrupt or not the manifest's.
    """
    path = Path(path)
    again = "delete the folder and run `ctm data` again"
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} holds no prepared dataset (no manifest.json); run `ctm data`")
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}/manifest.json is not a dataset manifest of format 1; {again}")
    if missing := sorted(MANIFEST_KEYS - manifest.keys()):
        raise UserError(f"{path}/manifest.json has no {', '.join(missing)}; {again}")
    images = _load(path / "images.npy", again)
    labels = _load(path / "labels.npy", again)
    if images.dtype != np.uint8 or list(images.shape) != manifest["shape"]:
        raise UserError(
            f"{path}/images.npy holds {images.dtype} {list(images.shape)}, but its manifest says "
            f"uint8 {manifest['shape']}; {again}"
        )
    if labels.dtype != np.int64 or labels.shape != (len(images),):
        raise UserError(
            f"{path}/labels.npy holds {labels.dtype} {list(labels.shape)} for {len(images)} "
            f"images; {again}"
        )
    if verify:
        for name, digest in manifest["files"].items():
            if sha256_file(path / name) != digest:
                raise UserError(f"{path / name} is not the file its manifest describes; {again}")
    return Dataset(path=path, images=images, labels=np.array(labels), manifest=manifest)


def _load(path: Path, again: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {again}") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is corrupt ({error}); {again}") from None
    return array
