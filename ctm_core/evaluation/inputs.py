"""What an evaluation is made from, each part checked against the others before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctm_core.config import Cell, Experiment
from ctm_core.config.metric_registry import TEACHER
from ctm_core.config.protocols import ReferenceFile
from ctm_core.data.dataset import Dataset, open_dataset
from ctm_core.evaluation.metrics.reference import Reference, load_reference
from ctm_core.models.foreign.fit import check_imported, is_imported
from ctm_core.models.weight_file import read_record
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Inputs:
    """Everything that belongs to one evaluation."""

    experiment: Experiment
    model: str
    record: dict[str, Any]  #: of the weight file
    digest: str  #: SHA-256 of the same
    step: int
    references: dict[str, Reference]  #: by protocol, of all that score the model
    teacher: tuple[Path, str] | None  #: file and hash; None if no metric needs it
    datasets: dict[str, Dataset]  #: by split

    def dataset(self, split: str, why: str) -> Dataset:
        """The experiment's data; UserError if it was not given."""
        if split not in self.datasets:
            name = self.experiment.dataset.name
            raise UserError(
                f"{why} needs the images of {name}/{split}; give their folder as --data"
            )
        return self.datasets[split]

    @property
    def chosen(self) -> dict[str, list[Cell]]:
        """The cells that each protocol scores."""
        return self.experiment.protocols(self.model, self.step)


def gather(
    experiment: Experiment,
    model: str,
    weights: Path,
    references: Sequence[Path],
    *,
    seed: int,
    step: int | None,
    teacher: Path | None,
    data: Sequence[Path],
) -> Inputs:
    """Check that everything belongs together; parameters and errors as :func:`evaluate`'s."""
    experiment.last_step(model)  # refuses an unknown model before anything is read
    given = read_references(references)
    experiment = experiment.without(set(experiment.evaluation.optional) - given.keys())
    record = read_record(weights)
    _check_weights(experiment, model, weights, record, seed, step)
    digest = sha256_file(weights)
    reached = int(record["step"])
    if not reached and is_imported(record) and experiment.imported(model):
        reached = experiment.last_step(model)  # the file's name did not tell
    inputs = Inputs(
        experiment,
        model,
        record,
        digest,
        reached,
        _references(given, experiment, model, record),
        _teacher(experiment, model, weights, digest, teacher),
        _datasets(experiment, model, record, data),
    )
    _check_needs(inputs)
    return inputs


def _check_weights(
    experiment: Experiment,
    model: str,
    path: Path,
    record: dict[str, Any],
    seed: int,
    step: int | None,
) -> None:
    expected: dict[str, Any] = {}
    if not is_imported(record):
        expected = {"experiment": experiment.experiment, "model": model, "seed": seed}
    if step is not None and (record["step"] or not is_imported(record)):
        expected["step"] = step
    for key, value in expected.items():
        if record[key] != value:
            raise UserError(
                f"{path} is of {key} {record[key]}, not {value}; give the file that "
                f"{experiment.experiment} made for {model}"
            )
    if is_imported(record):
        check_imported(experiment, record, path, model)
        own = experiment.diffusion.model_dump(mode="json")
        if record["diffusion"] != own:
            raise UserError(
                f"{path} is sampled between the noise levels that its authors used "
                f"({record['diffusion']}), not those of {experiment.experiment}; correct "
                "`diffusion` in the config"
            )
        return
    # `precision: auto` has been resolved by the machine that trained.
    hashes = [e.train_hash(model) for e in (experiment, *map(experiment.resolved, PRECISIONS))]
    if record["train_hash"] not in hashes:
        raise UserError(
            f"{path} was trained with another configuration of {model} (train_hash "
            f"{str(record['train_hash'])[:12]}, now {hashes[0][:12]}); train it again"
        )


def read_references(paths: Iterable[Path]) -> dict[str, Reference]:
    """References by the name of their protocol, which they carry."""
    references: dict[str, Reference] = {}
    for path in paths:
        reference = load_reference(path)
        if reference.protocol.name in references:
            raise UserError(
                f"two references are of the protocol {reference.protocol.name}; give one"
            )
        references[reference.protocol.name] = reference
    return references


def _references(
    given: dict[str, Reference], experiment: Experiment, model: str, record: dict[str, Any]
) -> dict[str, Reference]:
    """The reference of every protocol that scores the model, checked."""
    wanted = experiment.protocols(model, int(record["step"]))
    for name in wanted:
        if name not in given:
            raise UserError(f"no reference given for the protocol {name}; add its file")
        reference = given[name]
        if reference.resolution != record["resolution"]:
            raise UserError(
                f"the reference of {name} is of {reference.resolution}-pixel images, "
                f"{model} makes {record['resolution']}-pixel ones"
            )
        learned = {"dataset": record["dataset"], "split": "train"}
        if (
            record["dataset_fingerprint"] is not None  # converted files do not know their data
            and reference.protocol.reference.model_dump() == learned
            and reference.fingerprint != record["dataset_fingerprint"]
        ):
            raise UserError(
                f"the reference of {name} was made from other images of {record['dataset']} than "
                f"{model} has learned; make one of them again"
            )
    return {name: given[name] for name in wanted}


def _teacher(
    experiment: Experiment, model: str, weights: Path, digest: str, teacher: Path | None
) -> tuple[Path, str] | None:
    if model == "teacher":
        return weights, digest
    if teacher is None:
        return None
    if experiment.teacher is None:
        raise UserError(f"the experiment {experiment.experiment} has no teacher: omit --teacher")
    record = read_record(teacher)
    _check_weights(experiment, "teacher", teacher, record, experiment.teacher.seed, None)
    return teacher, sha256_file(teacher)


def _datasets(
    experiment: Experiment, model: str, record: dict[str, Any], folders: Sequence[Path]
) -> dict[str, Dataset]:
    datasets = {}
    for folder in folders:
        dataset = open_dataset(folder)
        if dataset.name != experiment.dataset.name:
            raise UserError(
                f"{folder} holds {dataset.name}, but {experiment.experiment} is about "
                f"{experiment.dataset.name}; give that one's folder"
            )
        learned = record["dataset_fingerprint"]
        if dataset.split == "train" and learned not in (None, dataset.fingerprint):
            raise UserError(
                f"{folder} holds other images of {dataset.name} than {model} has learned; make "
                "one of them again"
            )
        datasets[dataset.split] = dataset
    return datasets


def _check_needs(inputs: Inputs) -> None:
    """Refuse before any work what a metric lacks."""
    experiment, name = inputs.experiment.experiment, inputs.experiment.dataset.name
    for reference in inputs.references.values():
        protocol = reference.protocol
        place = f"the protocol {protocol.name} of {experiment}"
        if protocol.needs_teacher and inputs.teacher is None:
            fix = "give its weights as --teacher" if inputs.experiment.teacher else "leave it out"
            asking = ", ".join(protocol.needing(TEACHER))
            raise UserError(f"{asking} in {place} compares with the teacher; {fix}")
        if protocol.needs_training_images:
            inputs.dataset("train", place)
        asking, real = ", ".join(protocol.needing("nearest")), protocol.reference
        if asking and (isinstance(real, ReferenceFile) or real.dataset != name):
            raise UserError(f"{asking} in {place} needs the reference {{dataset: {name}}}")
    likelihood = inputs.experiment.likelihood(inputs.model, inputs.step)
    if likelihood is not None:
        inputs.dataset(likelihood.split, "likelihood")
