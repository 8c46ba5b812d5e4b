"""What one configuration file stands for: its experiments, their protocols, the external files.

The workflow and ``ctm plan`` read a configuration by the same function, so that they mean the same
experiments by the same names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctm_core.config import (
    Dataset,
    Experiment,
    Literature,
    Workflow,
    amounts,
    asset_listing,
    datasets,
    read_yaml,
    validated,
)
from ctm_core.config.asset_listing import ROOT, Asset
from ctm_core.config.protocols import Protocol, ReferenceSplit, load_protocol
from ctm_core.config.published import check_keys
from ctm_core.runtime.errors import UserError


@dataclass(frozen=True)
class Project:
    """A configuration with everything that it names."""

    path: str  #: of the file that lists the experiments
    files: Mapping[str, str]  #: of the experiments, by name
    sections: Mapping[str, Mapping[str, Any]]  #: what those files hold, as it was read
    experiments: Mapping[str, Experiment]
    protocols: Mapping[str, Protocol]  #: that an experiment names
    assets: Mapping[str, Asset]
    left_out: tuple[str, ...] = ()  #: sentences on optional protocols whose files are missing

    @property
    def datasets(self) -> dict[str, Dataset]:
        """Each data set that an experiment learns, by name."""
        learned: dict[str, Dataset] = {}
        for experiment in self.experiments.values():
            learned.setdefault(experiment.dataset.name, experiment.dataset)
        return learned


def locate(path: str | os.PathLike[str], root: Path = ROOT) -> str:
    """The path of a config file: in the working directory, or else in the project."""
    if Path(path).exists():
        return str(path)
    beside = root / path
    return os.path.relpath(beside) if beside.exists() else str(path)


def protocol_file(name: str, root: Path = ROOT) -> str:
    """The file of a protocol."""
    return locate(f"config/protocols/{name}.yaml", root)


def open_project(path: str | Path, root: Path = ROOT) -> Project:
    """Read a file that lists experiments, as Snakemake is given, or one experiment."""
    listing = read_yaml(path)
    if "experiments" not in listing:
        listing = {"experiments": [str(path)]}
    return read_project(listing, str(path), root)


def read_project(listing: Mapping[str, Any], path: str, root: Path = ROOT) -> Project:
    """Read everything that a list of experiments names.

    ``path`` is the file that holds ``listing``, for sentences about it; ``root`` is where config/
    stands if not in the working directory.
    """
    listed = validated(Workflow, dict(listing), path)
    files: dict[str, str] = {}
    sections: dict[str, Mapping[str, Any]] = {}
    experiments: dict[str, Experiment] = {}
    for entry in listed.experiments:
        named = not entry.endswith((".yaml", ".yml"))
        file = locate(f"config/experiments/{entry}.yaml" if named else entry, root)
        section = read_yaml(file)
        experiment = validated(Experiment, section, file)
        name = experiment.experiment
        if name in experiments:
            raise UserError(f"{path}: duplicate experiment {name}")
        files[name], sections[name], experiments[name] = file, section, experiment
    if (jobs := sum(map(amounts.jobs, experiments.values()))) > amounts.MOST_JOBS:
        raise UserError(
            f"{path}: experiments: {jobs:,} trainings and evaluations; at most "
            f"{amounts.MOST_JOBS:,}"
        )
    protocols = {
        name: load_protocol(protocol_file(name, root))
        for name in sorted({p for e in experiments.values() for p in e.evaluation.protocols})
    }
    known = asset_listing.load()
    for name, experiment in experiments.items():
        asset_listing.check_names(experiment.named_assets(), known, files[name])
        for scored in experiment.evaluation.protocols:
            batch, side = experiment.evaluation.batch_size, protocols[scored].input_size
            if 4 * 3 * batch * side**2 > amounts.MOST_BYTES:
                raise UserError(
                    f"{files[name]}: evaluation.batch_size: {batch:,} images of {scored}'s "
                    f"{side} pixels a side are more than {amounts.MOST_BYTES >> 30} GiB"
                )
    for name, protocol in protocols.items():
        asset_listing.check_names(protocol.named_assets(), known, protocol_file(name, root))
    project = Project(path, files, sections, experiments, protocols, known)
    _check_datasets(project)
    literature_file = locate("config/published.yaml", root)
    literature = validated(Literature, read_yaml(literature_file), literature_file)
    folders = (Path("config/experiments"), root / "config/experiments")
    names = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    check_keys(literature, experiments, names, literature_file)
    return _without_missing(project)


def _without_missing(project: Project) -> Project:
    """Leave out the optional protocols of which an external file is missing, with a sentence."""
    missing = {
        name: absent[0]
        for name, protocol in project.protocols.items()
        if (absent := [a for a in protocol.assets if not project.assets[a].path().exists()])
    }
    kept, sentences = {}, []
    for name, experiment in project.experiments.items():
        dropped = sorted(missing.keys() & set(experiment.evaluation.optional))
        kept[name] = experiment.without(dropped)
        sentences += [
            f"{name} is not scored by {protocol}, which is optional: {missing[protocol]} is "
            "missing (`ctm assets` says where it is from)"
            for protocol in dropped
        ]
    scoring = {
        protocol for experiment in kept.values() for protocol in experiment.evaluation.protocols
    }
    protocols = {name: p for name, p in project.protocols.items() if name in scoring}
    return replace(project, experiments=kept, protocols=protocols, left_out=tuple(sentences))


def _check_datasets(project: Project) -> None:
    """Refuse one name for two data sets, and references to data sets that nobody describes."""
    known = project.datasets
    for name, experiment in project.experiments.items():
        own, other = experiment.dataset, known[experiment.dataset.name]
        for key in Dataset.model_fields:
            if (mine := getattr(own, key)) != (theirs := getattr(other, key)):
                raise UserError(
                    f"{project.files[name]}: dataset.{key} of {own.name} is {mine}, but another "
                    f"experiment has {theirs}; a data set has one {key}"
                )
    for name, protocol in project.protocols.items():
        reference = protocol.reference
        if isinstance(reference, ReferenceSplit) and reference.dataset not in known:
            try:
                datasets.READERS.known(reference.dataset)
            except ValueError as error:
                raise UserError(
                    f"{protocol_file(name)}: reference.dataset: {error}, and those that an "
                    "experiment of this run describes"
                ) from None
