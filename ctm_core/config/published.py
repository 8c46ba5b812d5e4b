"""What others have published: values with their source, their protocol and what they cost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

from ctm_core.config import datasets
from ctm_core.config._section import (
    Name,
    Names,
    Nfe,
    OneOf,
    Positive,
    Section,
    Text,
    duplicates,
)
from ctm_core.config.experiment import Experiment
from ctm_core.config.metric_registry import FAMILIES, FID_SAMPLES
from ctm_core.config.sampler_traits import JUMP_SAMPLER, SamplerName
from ctm_core.config.sampling_grid import ProtocolCell
from ctm_core.runtime.errors import UserError

Family = Annotated[str, OneOf(tuple(FAMILIES))]
Value = Annotated[float, Field(ge=-1e9, le=1e9)]

#: read: in the source itself. secondary: another text's account of it. plot: read off a figure.
#: recalled: from memory, confirmed by nothing that could be opened.
Confidence = Literal["read", "secondary", "plot", "recalled"]

#: What a value took to get, as far as methods differ in kind.
CostClass = Literal[
    "data",  # real images, no model
    "diffusion",  # a diffusion or flow model, and a solver of many evaluations
    "gan",  # adversarial training alone
    "distillation",  # from a teacher
    "distillation_gan",  # from a teacher and an adversary
    "scratch",  # few evaluations, learned without a teacher
    "scratch_gan",  # the same with an adversary
    "unknown",
]
Extra = Literal[
    "lpips",  # a perceptual distance, trained on ImageNet and on people's judgements
    "pretrained_features",  # a discriminator on networks trained on ImageNet
    "teacher_initialisation",
    "larger_network",
    "two_stages",
    "no_data",
    "autoguidance",
]


class Ours(ProtocolCell):
    """The row of ours that a published value is compared with."""

    experiment: Name
    sampler: SamplerName = JUMP_SAMPLER
    step: Positive | None = Field(None, description="default: the last that is evaluated")

    def __str__(self) -> str:
        step = "" if self.step is None else f" step {self.step}"
        return f"{self.experiment} {self.model}{step} {self.cell.label}"


class PublishedRow(Section):
    """One method at one number of evaluations."""

    key: Name = Field(description="unique in the file; claims refer to it")
    method: Text
    conditional: bool | None = Field(None, description="null: the source does not say")
    nfe: Nfe | None = Field(None, description="null: no sampler is involved")
    values: dict[Family, Value] = Field(
        default_factory=dict,
        max_length=100,
        description="empty: no figure could be confirmed; `note` says why",
    )
    samples: Positive | None = Field(None, description="default: the group's")
    protocol: Name | None = Field(None, description="default: the group's")
    confidence: Confidence | None = Field(None, description="default: the group's")
    cost_class: CostClass
    extras: tuple[Extra, ...] = Field((), max_length=len(get_args(Extra)))
    verified_by: Text | None = Field(None, description="who measured the same again")
    note: Text | None = None
    ours: Ours | None = None

    def _problems(self) -> Iterator[str]:
        if not self.values and self.note is None:
            yield f"{self.key} has no values; say why in `note`"


class Group(Section):
    """Rows that one source prints together."""

    source: Text
    table: Text | None = Field(None, description="where in the source")
    dataset: Name = Field(description="one that `ctm data` knows, or one of `other_datasets`")
    measured_by: Literal["authors", "third party"] = "authors"
    protocol: Name | None = Field(
        None, description="a protocol of config/protocols; null: not known, or another"
    )
    samples: Positive | None = None
    confidence: Confidence
    rows: tuple[PublishedRow, ...] = Field(min_length=1, max_length=1000)


class Published(NamedTuple):
    """One published row with everything that its group says of it.

    ``protocol`` is None where it is not known, or none of ours.
    """

    row: PublishedRow
    group: Group
    protocol: str | None
    samples: int | None
    confidence: Confidence

    @property
    def key(self) -> str:
        return self.row.key

    @property
    def ours(self) -> Ours | None:
        return self.row.ours

    @property
    def source(self) -> str:
        """Source and table in one line."""
        return ", ".join(filter(None, (self.group.source, self.group.table)))

    @property
    def origin(self) -> str:
        """The source, and who else measured the value."""
        others = "measured by a third party" if self.group.measured_by == "third party" else None
        again = self.row.verified_by and f"verified by {self.row.verified_by}"
        return ", ".join(filter(None, (self.source, others, again)))

    @property
    def cost(self) -> str:
        """What the value took to get: ``distillation gan with lpips``."""
        extras = ", ".join(self.row.extras)
        return f"{self.row.cost_class}{' with ' if extras else ''}{extras}".replace("_", " ")


class Literature(Section):
    """config/published.yaml."""

    other_datasets: Names = Field(
        (), description="data sets of published values that `ctm data` does not know"
    )
    groups: tuple[Group, ...] = Field(max_length=1000)

    def _problems(self) -> Iterator[str]:
        known = [*datasets.names(), *self.other_datasets]
        if unknown := sorted({group.dataset for group in self.groups} - {*known}):
            yield f"unknown dataset {unknown[0]!r}; known are {', '.join(known)}"
        if keys := duplicates(entry.key for entry in self.entries()):
            yield f"duplicate key {keys[0]}"
        taken: dict[tuple[Ours, str | None, str], str] = {}
        for entry in self.entries():
            if "fid" in entry.row.values and (entry.samples or FID_SAMPLES) < FID_SAMPLES:
                yield f"{entry.key}: {entry.samples} samples are too few for `fid`; call it `fd`"
            if entry.ours is None:
                continue
            if entry.protocol is None:
                yield f"{entry.key} names a row of ours but no protocol, so it is never compared"
            for family in entry.row.values:
                place = entry.ours, entry.protocol, family
                if place in taken:
                    yield f"{entry.key} and {taken[place]} name the same row of ours"
                taken[place] = entry.key

    def entries(self) -> Iterator[Published]:
        """Every row, in the order of the file."""
        for group in self.groups:
            for row in group.rows:
                yield Published(
                    row,
                    group,
                    row.protocol or group.protocol,
                    row.samples or group.samples,
                    row.confidence or group.confidence,
                )

    def get(self, key: str) -> Published | None:
        """The row of a key, or None."""
        return next((entry for entry in self.entries() if entry.key == key), None)


def check_keys(
    literature: Literature,
    experiments: Mapping[str, Experiment],
    known: Iterable[str],
    path: str | os.PathLike[str],
) -> None:
    """Refuse entries that name a row which these experiments, or any of the known, do not make."""
    names_of_all = {*known, *experiments}
    for entry in literature.entries():
        ours = entry.ours
        if ours is None:
            continue
        if ours.experiment not in names_of_all:
            raise UserError(
                f"{path}: {entry.key} names the experiment {ours.experiment}, and there is none"
            )
        experiment = experiments.get(ours.experiment)
        if experiment is None:
            continue
        models = [*experiment.models, *(["teacher"] if experiment.teacher is not None else [])]
        if ours.model not in models:
            problem = f"has the models {', '.join(models)} only"
        elif ours.step is not None and ours.step not in experiment.exported_steps(ours.model):
            problem = f"evaluates no step {ours.step} of {ours.model}"
        elif ours.cell not in experiment.cells(ours.model, ours.step):
            problem = "does not sample that"
        else:
            continue
        raise UserError(
            f"{path}: {entry.key} names {ours}, but the experiment {problem}; correct its "
            "`ours`, or remove it"
        )
