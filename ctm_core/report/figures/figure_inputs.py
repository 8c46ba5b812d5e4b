"""What figures are drawn from beside the table: preview images, and logs of trainings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ctm_core.evaluation.previews import PATH_PREFIX
from ctm_core.report.figures import curves, grids
from ctm_core.report.scores import Row, model_order
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_json
from ctm_core.runtime.scalars import read_log
from ctm_core.runtime.untrusted import parse_json


class Training(NamedTuple):
    """One training: its loss terms, and the step of another run that it starts from."""

    curve: curves.Curve
    starts_at: int


class Previews:
    """Preview images of the evaluated weights, read when asked for."""

    def __init__(self, evaluations: Iterable[Path]) -> None:
        self._files: dict[tuple[str, str, int], tuple[Path, str]] = {}
        self._read: dict[Path, tuple[dict[str, grids.Images], dict[str, str]]] = {}
        records = [(read_json(path), path) for path in evaluations]
        for record, path in sorted(records, key=lambda pair: -int(pair[0]["train_seed"])):
            # The lowest training seed comes last and stays: one network is shown, not a mixture.
            key = (record["experiment"], record["model"], int(record["step"]))
            file = path.with_name("previews.safetensors")
            self._files[key] = file, record["checkpoint_sha256"]

    def of(self, row: Row) -> tuple[grids.Images, list[int]]:
        """Images (N, C, H, W) and classes of a row's cell."""
        path, images, metadata = self._open(row)
        if row.cell.label not in images:
            raise UserError(f"{path} has no samples of {row.cell.label}; evaluate again")
        return images[row.cell.label], parse_json(metadata.get("labels", "[]"), path)

    def cells(self, row: Row) -> set[str]:
        """Labels of the cells of which a row's model has pictures."""
        return set(self._open(row)[1])

    def paths(self, row: Row) -> list[grids.DenoisingPath]:
        """The denoising paths that are kept of a row's model, by rising gamma."""
        file, images, metadata = self._open(row)
        kept = [
            grids.DenoisingPath(
                float(label.rpartition("-")[2]), images[PATH_PREFIX + label], levels
            )
            for label, levels in parse_json(metadata.get("paths", "{}"), file).items()
        ]
        return sorted(kept, key=lambda path: path.gamma)

    def _open(self, row: Row) -> tuple[Path, dict[str, grids.Images], dict[str, str]]:
        path, weights = self._files[row.experiment, row.model, row.step]
        if path not in self._read:
            tensors, metadata = load_tensors(path)
            if metadata.get("weights_sha256", weights) != weights:
                raise UserError(
                    f"{path} holds samples of other weights than {path.parent}/evaluation.json; "
                    "evaluate again"
                )
            images = {name: np.asarray(tensor.numpy()) for name, tensor in tensors.items()}
            self._read[path] = images, metadata
        return path, *self._read[path]


def read_trainings(paths: Iterable[Path]) -> dict[str, dict[tuple[str, int], Training]]:
    """Trainings by experiment and (model, training seed), the teacher first."""
    trainings: dict[str, dict[tuple[str, int], Training]] = {}
    for path in paths:
        summary = read_json(path.with_name("training.json"))
        key = (summary["model"], int(summary["seed"]))
        fork = summary.get("init_from") or {"step": 0}
        training = Training(_curve(path), int(fork["step"]))
        trainings.setdefault(summary["experiment"], {})[key] = training
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
