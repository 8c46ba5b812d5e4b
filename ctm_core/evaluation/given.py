"""Score the images of a file or folder, whoever made them.

A file of ``ctm sample`` has a record beside it (``samples.json``), which is compared with the
protocol; of other files only the images are known.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctm_core.config import validated
from ctm_core.config.metric_registry import TEACHER
from ctm_core.config.protocols import Protocol, ReferenceSplit
from ctm_core.data.dataset import open_dataset
from ctm_core.data.picture_files import LARGEST_FILE, list_pictures, read_picture
from ctm_core.evaluation.cells import BLOCKS
from ctm_core.evaluation.evaluation_file import write_evaluation
from ctm_core.evaluation.inputs import read_references
from ctm_core.evaluation.metrics.nearest import nearest_distances
from ctm_core.evaluation.metrics.reference import Reference
from ctm_core.evaluation.metrics.scoring import scores
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.features import build_features
from ctm_core.runtime.arrays import Archive, load_array
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import check_content, sha256_bytes, sha256_file, sha256_json
from ctm_core.runtime.provenance import code_version
from ctm_core.runtime.untrusted import open_regular, parse_json, printable, read_bytes

BATCH = 256

log = logging.getLogger(__name__)


class Images:
    """uint8 images of a .npy or .npz array, or of a folder of PNG and JPEG files.

    Parameters
    ----------
    path
        An array (N, C, H, W) or (N, H, W, C), C of 1 or 3 and H = W; in a .npz file ``arr_0`` or
        the only one. Or a folder, whose pictures, those of sub-folders included, are taken in
        order of their names; what else it holds is logged.

    Raises
    ------
    UserError
        If it is missing, damaged, empty, or of another shape or type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[str] = []
        self._array: NDArray[np.uint8] | None = None
        self._member = ""
        kind: Any = np.dtype(np.uint8)
        if path.is_dir():
            shape = self._list_folder()
        elif _is_archive(path):
            shape, kind = self._open_archive()
        else:
            self._array = load_array(path)
            shape, kind = self._array.shape, self._array.dtype
        self._channels_last = len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3)
        if self._channels_last:
            shape = (shape[0], shape[3], *shape[1:3])
        if kind != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise UserError(
                f"{path} is {kind} of shape {shape}; images are uint8 of shape (N, C, H, W) or "
                "(N, H, W, C) with one or three channels"
            )
        if shape[2] != shape[3]:
            raise UserError(f"{path} holds images of {shape[2:]}; they must be square")
        self.count, self.shape = shape[0], shape[1:]
        if self.count < 2:
            raise UserError(f"{path} holds {self.count} images; scores need two at least")

    def batches(self, channels: int = 3) -> Iterator[torch.Tensor]:
        """uint8 (at most 256, C, H, W), in order; C as it is, or 1.

        Raises
        ------
        UserError
            If ``channels`` is 1 and the three of an image differ, or a file is damaged.
        """
        for images in self._parts():
            part = images.transpose(0, 3, 1, 2) if self._channels_last else images
            if channels < part.shape[1]:
                if (part != part[:, :1]).any():
                    raise UserError(
                        f"{self.path} holds colour images, but the protocol is for images of one "
                        "channel; give images in grey"
                    )
                part = part[:, :1]
            yield torch.from_numpy(np.array(part))

    def sha256(self) -> str:
        """Of the file, or of the names and contents of the folder's files."""
        if not self.files:
            return sha256_file(self.path)
        return sha256_json(
            [
                [name, sha256_bytes(read_bytes(self.path / name, LARGEST_FILE))]
                for name in self.files
            ]
        )

    def _parts(self) -> Iterator[NDArray[np.uint8]]:
        if self._member:
            with Archive(self.path) as archive:
                yield from archive.rows(self._member, BATCH)
        elif self._array is not None:
            for start in range(0, self.count, BATCH):
                yield self._array[start : start + BATCH]
        else:
            for start in range(0, self.count, BATCH):
                yield np.stack([self._picture(name) for name in self.files[start : start + BATCH]])

    def _list_folder(self) -> tuple[int, ...]:
        self.files, left_out = listing = list_pictures(self.path)
        if sentence := listing.describe_left_out():
            log.warning("left out of %s: %s", printable(str(self.path)), sentence)
        if not self.files:
            rest = f", only {len(left_out)} other files" if left_out else ""
            raise UserError(
                f"{self.path} holds no PNG or JPEG files{rest}; give a folder of images"
            )
        return len(self.files), *read_picture(self.path / self.files[0]).shape

    def _picture(self, name: str) -> NDArray[np.uint8]:
        pixels = read_picture(self.path / name)
        if pixels.shape != self.shape:
            raise UserError(
                f"{printable(str(self.path / name))} is of shape {pixels.shape}, the images "
                f"before it of {self.shape}; give images of one size and number of channels"
            )
        return pixels

    def _open_archive(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with Archive(self.path) as archive:
            names = archive.names
            if not names or ("arr_0" not in names and len(names) > 1):
                listed = printable(", ".join(names)) or "none"
                raise UserError(f"{self.path} holds the arrays {listed}; call the images arr_0")
            self._member = "arr_0" if "arr_0" in names else names[0]
            return archive.header(self._member)


def _is_archive(path: Path) -> bool:
    with open_regular(path) as file:
        head = file.read(6)
    if not head.startswith((b"PK", b"\x93NUMPY")):
        raise UserError(
            f"{path} holds no array of images; give a .npy or .npz file, or a folder of pictures"
        )
    return head.startswith(b"PK")


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
    place = PLACE | {key: record[key] for key in (*PLACE, "times") if key in record}
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
        "model": record.get("model", _model_name(samples.stem)),
        "objective": record.get("objective", "unknown"),
        "step": record.get("step", 0),
        "train_seed": record.get("train_seed", 0),
        "params_m": record.get("params_m", 0.0),
        "checkpoint_sha256": record.get("checkpoint_sha256", digest),
        "train_hash": record.get("train_hash", digest),
        "code_version": code_version(),
        "protocols": {
            name: reference.record() | {"images_sha256": digest}
            for name, reference in fitted.items()
        },
        "rows": rows,
    }
    source = samples.with_suffix(".json") if record else samples
    write_evaluation(output / "evaluation.json", result, source)
    return result


def _model_name(stem: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).lstrip("-_") or "samples"


#: The cell of a file without a record.
PLACE: dict[str, Any] = {"sample_seed": 0, "sampler": "file", "gamma": None, "nfe": 0}


def _record(samples: Path, digest: str) -> dict[str, Any]:
    """What `ctm sample` noted beside its array; nothing for other files."""
    path = samples.with_suffix(".json")
    if samples.is_dir() or not path.exists():
        return {}
    content = read_bytes(path)
    if b'"samples"' not in content:  # somebody else's file that happens to have this name
        return {}
    record = parse_json(content, path)
    if not isinstance(record, dict) or record.get("kind") != "samples":
        return {}
    check_content(record, path, "sample again")
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
    grey = extractor.channels == 1
    if grey and images.shape[0] == 3:
        place = printable(str(images.path))
        log.info("%s: one of three channels is used, which must be equal", place)
    for batch in images.batches(1 if grey else 3):
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
