"""Typed configuration: one YAML file an experiment, one that lists experiments, and the lists of
the paper's claims and of published values.

The models below are the single source of every key: the files under ``config/`` are validated by
them, Snakemake's JSON schemas are generated from them (``python -m ctm_core.config``), and the
hashes that name run folders are taken over them. A mistake in a file ends in one sentence with
file, key and what is allowed.
"""

from ctm_core.config._section import Name
from ctm_core.config.claims import Claims
from ctm_core.config.datasets import Dataset
from ctm_core.config.experiment import Experiment
from ctm_core.config.gan import Adversarial, Discriminator
from ctm_core.config.network import Diffusion, Network
from ctm_core.config.optimization import Training
from ctm_core.config.published import Literature
from ctm_core.config.reading import (
    Workflow,
    json_schema,
    load_experiment,
    validated,
)
from ctm_core.config.sampling_grid import Cell
from ctm_core.config.student import Perceptual, Released, Student
from ctm_core.config.teacher import Teacher
from ctm_core.config.yaml_text import read_yaml

__all__ = [
    "Adversarial",
    "Cell",
    "Claims",
    "Dataset",
    "Diffusion",
    "Discriminator",
    "Experiment",
    "Literature",
    "Name",
    "Network",
    "Perceptual",
    "Released",
    "Student",
    "Teacher",
    "Training",
    "Workflow",
    "json_schema",
    "load_experiment",
    "read_yaml",
    "validated",
]
