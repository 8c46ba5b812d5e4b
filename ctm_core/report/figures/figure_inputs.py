"""What figures are drawn from beside the table: previews, training images, training logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ctm_core.config import validated
from ctm_core.data.dataset import Dataset, open_dataset
from ctm_core.evaluation.evaluation_file import Evaluation
from ctm_core.evaluation.previews import PATH_PREFIX
from ctm_core.report.figures import curves, grids
from ctm_core.report.scores import Row, model_order
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, sha256_file
from ctm_core.runtime.scalars import read_log
from ctm_core.runtime.untrusted import parse_json
from ctm_core.training.training_file import AGAIN, read_training


class Training(NamedTuple):
    """One training: its loss terms, and the step of another run that it starts from."""

    curve: curves.Curve
    starts_at: int


class _Metadata(BaseModel):
    """What ``previews.safetensors`` says of its images."""

    labels: list[int] = []
    paths: dict[str, list[float]] = {}


class Previews:
    """Preview images of the evaluated weights, read when asked for."""

    def __init__(self, evaluations: Iterable[Evaluation]) -> None:
        self._files: dict[tuple[str, str, int], tuple[Path, str]] = {}
        self._read: dict[Path, tuple[dict[str, grids.Images], _Metadata]] = {}
        for one in sorted(evaluations, key=lambda evaluation: -evaluation.train_seed):
            # The lowest training seed comes last and stays: one network is shown, not a mixture.
            key = (one.experiment, one.model, one.step)
            self._files[key] = one.path.with_name("previews.safetensors"), one.checkpoint_sha256

    def of(self, row: Row) -> tuple[grids.Images, list[int]]:
        """Images (N, C, H, W) and classes of a row's cell."""
        path, images, metadata = self._open(row)
        return _taken(images, row.cell.label, path), metadata.labels

    def cells(self, row: Row) -> set[str]:
        """Labels of the cells of which a row's model has pictures."""
        return set(self._open(row)[1])

    def paths(self, row: Row) -> list[grids.DenoisingPath]:
        """The denoising paths that are kept of a row's model, by rising gamma."""
        file, images, metadata = self._open(row)
        kept = [
            grids.DenoisingPath(
                _gamma(label, file), _taken(images, PATH_PREFIX + label, file), levels
            )
            for label, levels in metadata.paths.items()
        ]
        return sorted(kept, key=lambda path: path.gamma)

    def _open(self, row: Row) -> tuple[Path, dict[str, grids.Images], _Metadata]:
        path, weights = self._files[row.experiment, row.model, row.step]
        if path not in self._read:
            tensors, metadata = load_tensors(path)
            if metadata.get("weights_sha256", weights) != weights:
                raise UserError(
                    f"{path} holds samples of other weights than {path.parent}/evaluation.json; "
                    "evaluate again"
                )
            images = {name: np.asarray(tensor.numpy()) for name, tensor in tensors.items()}
            told = {n: parse_json(metadata[n], path) for n in ("labels", "paths") if n in metadata}
            self._read[path] = images, validated(_Metadata, told, path)
        return path, *self._read[path]


def _taken(images: Mapping[str, grids.Images], name: str, path: Path) -> grids.Images:
    if name not in images:
        raise UserError(f"{path} has no samples of {name}; evaluate again")
    return images[name]


def _gamma(label: str, path: Path) -> float:
    try:
        return float(label.rpartition("-")[2])
    except ValueError:
        raise UserError(
            f"{path} has a path of {label!r}, which is no cell; evaluate again"
        ) from None


def read_training_images(
    folders: Iterable[Path], evaluations: Sequence[Evaluation]
) -> dict[str, Dataset]:
    """Training images by the name of their data set, those that the evaluated models learned."""
    learned: dict[str, Dataset] = {}
    for folder in folders:
        dataset = open_dataset(folder)
        name, known = dataset.name, (None, dataset.fingerprint)  # None: of converted weights
        if dataset.split != "train":
            raise UserError(f"{folder} holds {name}/{dataset.split}; give the folder of train")
        if name in learned:
            raise UserError(
                f"{folder} and {learned[name].path} both hold {name}; give one of them"
            )
        for one in evaluations:
            if one.dataset == name and one.dataset_fingerprint not in known:
                raise UserError(
                    f"{folder} holds other images of {name} than {one.model} of "
                    f"{one.experiment} has learned; make one of them again"
                )
        learned[name] = dataset
    return learned


def read_trainings(paths: Iterable[Path]) -> dict[str, dict[tuple[str, int], Training]]:
    """Trainings by experiment and (model, training seed), the teacher first."""
    trainings: dict[str, dict[tuple[str, int], Training]] = {}
    for path in paths:
        record = read_training(path.with_name("training.json"))
        if record.curve_sha256 not in (None, sha256_file(path)):
            raise UserError(f"{path} was changed after it was written; {AGAIN}")
        fork = record.init_from
        training = Training(_curve(path), 0 if fork is None else fork.step)
        trainings.setdefault(record.experiment, {})[record.model, record.seed] = training
    return {
        experiment: dict(sorted(own.items(), key=lambda item: (model_order(item[0][0]), item[0])))
        for experiment, own in trainings.items()
    }


def _curve(path: Path) -> curves.Curve:
    try:
        lines = [parse_json(line, path) for line in read_log(path)]
        frame = pd.DataFrame(lines).set_index("step").astype(float)
        terms = {str(name) for name in frame} - {*curves.NOT_DRAWN}
        ordered = sorted(terms, key=lambda name: ([*curves.TERMS, name].index(name), name))
        return {name: frame[name].dropna() for name in ordered}
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a training log ({error}); train again") from None
