"""Score the images of a file or folder, whoever made them.

A file of ``ctm sample`` has a record beside it (``samples.json``), which is compared with the
protocol; of other files only the images are known.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ctm_core.config import validated
from ctm_core.config.metric_registry import TEACHER
from ctm_core.config.protocols import Protocol, ReferenceSplit
from ctm_core.data.dataset import open_dataset
from ctm_core.evaluation.cells import BLOCKS
from ctm_core.evaluation.inputs import read_references
from ctm_core.evaluation.metrics.nearest import nearest_distances
from ctm_core.evaluation.metrics.reference import Reference
from ctm_core.evaluation.metrics.scoring import scores
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.features import build_features
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, sha256_file, sha256_json, write_json
from ctm_core.runtime.provenance import code_version

__all__ = ["Images", "score_files"]

BATCH = 256


class Images:
    """uint8 images of a .npy or .npz array or a folder of PNG files.

    Parameters
    ----------
    path
        An array (N, C, H, W) or (N, H, W, C), C of 1 or 3 and H = W; in a .npz file ``arr_0`` or
        the only one. Or a folder, whose PNG files are taken in order of their names.

    Raises
    ------
    UserError
        If it is missing, damaged, empty, or of another shape or type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[Path] = []
        self.array: NDArray[np.uint8] | None = None
        if path.is_dir():
            self.files = sorted(path.glob("*.png"))
            if not self.files:
                raise UserError(f"{path} holds no .png files; give a folder of images")
            self.shape = tuple(self._decoded(self.files[0]).shape)
            self.count = len(self.files)
        else:
            self.array = self._opened()
            self.count, self.shape = len(self.array), tuple(self.array.shape[1:])
        if self.count < 2:
            raise UserError(f"{path} holds {self.count} images; scores need two at least")

    def batches(self) -> Iterator[torch.Tensor]:
        """uint8 (at most 256, C, H, W), in order."""
        for start in range(0, self.count, BATCH):
            if self.array is not None:
                yield torch.from_numpy(np.array(self.array[start : start + BATCH]))
                continue
            part = [self._decoded(file) for file in self.files[start : start + BATCH]]
            for file, image in zip(self.files[start:], part, strict=False):
                if tuple(image.shape) != self.shape:
                    raise UserError(
                        f"{file} is of shape {tuple(image.shape)}, the images before it of "
                        f"{self.shape}; give images of one size"
                    )
            yield torch.stack(part)

    def sha256(self) -> str:
        """Of the file, or of the names and contents of the folder's files."""
        if self.array is not None:
            return sha256_file(self.path)
        return sha256_json([[file.name, sha256_file(file)] for file in self.files])

    def _opened(self) -> NDArray[np.uint8]:
        try:
            array: Any = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                names = list(array.files)
                name = "arr_0" if "arr_0" in names else names[0]
                if name != "arr_0" and len(names) > 1:
                    raise UserError(
                        f"{self.path} holds the arrays {', '.join(names)}; call the images arr_0"
                    )
                array = array[name]
        except FileNotFoundError:
            raise UserError(f"{self.path} is missing; correct the path") from None
        except (ValueError, OSError, EOFError, IndexError, zipfile.BadZipFile) as error:
            problem = " ".join(str(error).split())[:120]
            raise UserError(
                f"{self.path} holds no array of images ({problem}); give a .npy or .npz file, or "
                "a folder of .png files"
            ) from None
        if array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
            raise UserError(
                f"{self.path} is {array.dtype} of shape {array.shape}; images are uint8 of shape "
                "(N, C, H, W) or (N, H, W, C) with one or three channels"
            )
        if array.shape[2] != array.shape[3]:
            raise UserError(f"{self.path} holds images of {array.shape[2:]}; they must be square")
        images: NDArray[np.uint8] = array
        return images

    def _decoded(self, file: Path) -> torch.Tensor:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                grey = image.mode in ("1", "L")
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} is no readable PNG image ({error}); delete it") from None
        if pixels.shape[0] != pixels.shape[1]:
            raise UserError(f"{file} is of {pixels.shape[:2]} pixels; images must be square")
        channels = pixels[None] if grey else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.array(channels))


def score_files(
    samples: Path, references: Sequence[Path], output: Path, data: Sequence[Path] = ()
) -> dict[str, Any]:
    """Score images by the protocols of some references, and write ``evaluation.json``.

    Every image counts: the number of samples, part of the metrics' names, is the file's. A
    protocol that demands ``fid`` is refused if there are too few.

    Parameters
    ----------
    samples
        As :class:`Images` takes it.
    references
        What ``ctm features reference`` wrote.
    output
        Folder for the result, which ``ctm table`` reads like any other.
    data
        Prepared training images, for memorisation.

    Raises
    ------
    UserError
        If the images cannot be read, are of another size or data set than a reference, were
        rounded otherwise than a protocol says, or are too few for it.
    """
    images = Images(samples)
    digest = images.sha256()
    record = _record(samples, digest)
    fitted = {
        name: _fitted(reference, images, record)
        for name, reference in read_references(references).items()
    }
    place = {key: record.get(key, default) for key, default in PLACE.items()}
    rows = []
    for name, reference in fitted.items():
        state = _pass(images, reference, data)
        try:
            values = scores(state, reference.state, reference.protocol, errors=True)
        except ValueError as error:
            raise UserError(f"{samples} cannot be scored by {name}: {error}") from None
        rows += [place | {"protocol": name} | row for row in values]
    result = {
        "experiment": record.get("experiment", "samples"),
        "dataset": record.get("dataset", "unknown"),
        "dataset_fingerprint": None,
        "model": record.get("model", re.sub(r"[^a-z0-9_-]+", "-", samples.stem.lower())),
        "objective": record.get("objective", "unknown"),
        "step": record.get("step", 0),
        "train_seed": record.get("train_seed", 0),
        "params_m": record.get("params_m", 0.0),
        "checkpoint_sha256": record.get("checkpoint_sha256", digest),
        "train_hash": record.get("train_hash", digest),
        "code_version": code_version(),
        "seconds": 0.0,
        "protocols": {
            name: reference.record() | {"images_sha256": digest}
            for name, reference in fitted.items()
        },
        "rows": rows,
    }
    write_json(output / "evaluation.json", result)
    return result


#: The cell of a file without a record.
PLACE: dict[str, Any] = {"sample_seed": 0, "sampler": "file", "gamma": None, "nfe": 0}


def _record(samples: Path, digest: str) -> dict[str, Any]:
    """What `ctm sample` noted beside its array; nothing for other files."""
    path = samples.with_suffix(".json")
    if samples.is_dir() or not path.exists():
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or record.get("kind") != "samples":
        return {}
    if record.get("array_sha256") != digest:
        raise UserError(
            f"{path} describes another array than {samples}; delete it or sample again"
        )
    return record


def _fitted(reference: Reference, images: Images, record: dict[str, Any]) -> Reference:
    """The reference with its protocol for as many samples as there are images."""
    protocol, path = reference.protocol, images.path
    if images.shape[-1] != reference.resolution:
        raise UserError(
            f"{path} holds images of {images.shape[-1]} pixels, but the reference of "
            f"{protocol.name} is of {reference.resolution}-pixel images"
        )
    real = protocol.reference
    learned = record.get("dataset")
    if isinstance(real, ReferenceSplit) and learned not in (None, real.dataset):
        raise UserError(
            f"{path} was sampled from {record.get('model')} of {record.get('experiment')}, which "
            f"was trained on {learned}, but {protocol.name} compares with {real.dataset}"
        )
    if record.get("rounding", protocol.rounding) != protocol.rounding:
        raise UserError(
            f"{path} was rounded by {record['rounding']}, but {protocol.name} says "
            f"{protocol.rounding}; sample again, or choose a protocol that says so"
        )
    if asking := ", ".join(protocol.needing(TEACHER)):
        raise UserError(
            f"{protocol.name} asks for {asking}, which is of a model and not of its images; "
            "choose a protocol without it"
        )
    described = protocol.model_dump() | {"samples": images.count}
    place = f"{path} ({images.count} images) cannot be scored by {protocol.name}"
    return replace(reference, protocol=validated(Protocol, described, place))


def _pass(images: Images, reference: Reference, data: Sequence[Path]) -> State:
    protocol = reference.protocol
    state = State(images.count, protocol.needs, blocks=BLOCKS, keep=protocol.neighbours.rows)
    training = _training(reference, data) if "nearest" in protocol.needs else None
    extractor = build_features(protocol)
    for batch in images.batches():
        outputs = dict(extractor.extract(batch, protocol.outputs))
        if training is not None:
            outputs["nearest"] = nearest_distances(batch, training)
        state.update(outputs)
    return state


def _training(reference: Reference, data: Sequence[Path]) -> torch.Tensor:
    """The training images behind a reference."""
    for folder in data:
        dataset = open_dataset(folder)
        if dataset.fingerprint == reference.fingerprint:
            return dataset.batch(torch.arange(len(dataset)))[0]
    raise UserError(
        f"{', '.join(reference.protocol.needing('nearest'))} in {reference.protocol.name} needs "
        "the training images that its reference was made of; give their folder as --data"
    )
