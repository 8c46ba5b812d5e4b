"""Which external files a config needs, and for what."""

from __future__ import annotations

from pathlib import Path

from ctm_core.config.dag import Job, graph
from ctm_core.config.project import open_project


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
    jobs = graph(open_project(path), "all")
    users: dict[str, list[str]] = {}
    for job in jobs:
        # The feature networks of an evaluation are those of its references.
        for asset in job.assets if job.kind != "evaluate" else ():
            users.setdefault(asset, []).extend(_users(job, jobs))
    # Experiments before protocols, each once.
    return {
        asset: tuple(sorted(dict.fromkeys(names), key=lambda name: name.startswith("protocol ")))
        for asset, names in users.items()
    }


def _users(job: Job, jobs: list[Job]) -> list[str]:
    """The experiment or protocol that a job is for; that of its readers for data and networks."""
    if job.kind in ("data", "convert"):
        made = set(job.outputs)
        readers = (other for other in jobs if made.intersection(other.inputs))
        return [user for reader in readers for user in _users(reader, jobs)]
    if job.kind == "reference":
        return [f"protocol {job.name}"]
    return [] if job.experiment is None else [job.experiment.experiment]
