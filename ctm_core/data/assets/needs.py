"""Which external files a config needs, and for what."""

from __future__ import annotations

from pathlib import Path

from ctm_core.config import Experiment, read_yaml
from ctm_core.config.datasets import traits
from ctm_core.config.project import read_project
from ctm_core.config.protocols import Protocol, ReferenceSplit

__all__ = ["needs"]


def needs(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The files that a config's jobs read, each with the experiments and protocols that need it.

    Parameters
    ----------
    path
        A file that lists experiments, as Snakemake is given, or one experiment.

    Returns
    -------
    dict
        By an asset's name: ``cifar10-uncond`` for an experiment's data, teacher, losses or
        released model, ``protocol edm-cifar10`` for the network or the reference of a protocol.

    Raises
    ------
    UserError
        If the config, or an experiment or protocol that it names, is missing or wrong.
    """
    listing = read_yaml(path)
    if "experiments" not in listing:
        listing = {"experiments": [str(path)]}
    project = read_project(listing, str(path))
    found: dict[str, dict[str, None]] = {}
    for name, experiment in project.experiments.items():
        for asset in _of_experiment(experiment):
            found.setdefault(asset, {})[name] = None
        for scored in experiment.evaluation.protocols:
            for asset in _of_protocol(project.protocols[scored], experiment):
                found.setdefault(asset, {})[f"protocol {scored}"] = None
    return {asset: tuple(by) for asset, by in found.items()}


def _of_experiment(experiment: Experiment) -> list[str]:
    names = list(experiment.named_assets().values())
    students = experiment.students.values()
    for student in students:
        names += student.assets
    if students or experiment.trains_teacher:
        names += experiment.dataset.assets
    return names


def _of_protocol(protocol: Protocol, experiment: Experiment) -> list[str]:
    names = list(protocol.assets)
    if isinstance(reference := protocol.reference, ReferenceSplit):
        dataset = experiment.dataset
        given = dataset.source is not None and dataset.name == reference.dataset
        names += () if given else traits(reference.dataset).assets
    return names
