"""Which external files a config needs, and for what."""

from __future__ import annotations

from pathlib import Path

from ctm_core.assets.listing import ROOT
from ctm_core.config import Experiment, load_experiment, load_workflow, read_yaml
from ctm_core.config.experiment import DATASET_FILES
from ctm_core.protocols import ReferenceSplit, load_protocol

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
    found: dict[str, dict[str, None]] = {}

    def add(names: tuple[str, ...], by: str) -> None:
        for name in names:
            found.setdefault(name, {})[by] = None

    for experiment in _experiments(Path(path)):
        add(tuple(experiment.named_assets().values()), experiment.experiment)
        trained = [*experiment.students.values()]
        for student in trained:
            add(student.assets, experiment.experiment)
        if trained or experiment.trains_teacher:
            add(experiment.dataset.assets, experiment.experiment)
        for name in experiment.evaluation.protocols:
            protocol = load_protocol(_located(f"config/protocols/{name}.yaml"))
            add(protocol.assets, f"protocol {name}")
            reference = protocol.reference
            if isinstance(reference, ReferenceSplit):
                own = reference.dataset == experiment.dataset.name
                given = own and experiment.dataset.source is not None
                files = () if given else DATASET_FILES.get(reference.dataset, ())
                add(files, f"protocol {name}")
    return {name: tuple(by) for name, by in found.items()}


def _experiments(path: Path) -> list[Experiment]:
    if "experiments" not in read_yaml(path):
        return [load_experiment(path)]
    entries = load_workflow(path).experiments
    files = [
        entry if entry.endswith((".yaml", ".yml")) else f"config/experiments/{entry}.yaml"
        for entry in entries
    ]
    return [load_experiment(_located(file)) for file in files]


def _located(path: str) -> Path:
    """A config file of the working directory or, if there is none, of the project."""
    beside = ROOT / path
    return Path(path) if Path(path).exists() or not beside.exists() else beside
