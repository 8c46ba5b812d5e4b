"""Typed configuration: one YAML file an experiment, one that lists experiments.

The models below are the single source of every key: the files under ``config/`` are validated by
them, Snakemake's JSON schemas are generated from them (``python -m ctm_core.config``), and the
hashes that name run folders are taken over them. A mistake in a file ends in one sentence with
file, key and what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ctm_core.errors import UserError
from ctm_core.files import sha256_json, write_text

__all__ = [
    "Cell",
    "Dataset",
    "Diffusion",
    "Dsm",
    "Evaluation",
    "Experiment",
    "Network",
    "Perceptual",
    "SamplerGrid",
    "Student",
    "Teacher",
    "Training",
    "Workflow",
    "json_schema",
    "load_experiment",
    "load_workflow",
    "read_yaml",
    "validated",
]

#: Keys of a training section that cannot change the final weights, so are left out of its hash.
WITHOUT_EFFECT = ("keep", "snapshots", "log_every", "preview_every", "checkpoint_every")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0)]
ModelT = TypeVar("ModelT", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # Python counts true as 1, and YAML reads `yes` as true.
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (wanted, *get_args(wanted)):
            raise ValueError("true and false (also yes, no, on, off) do not belong here")
        return value


def _without_repetition(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(value)) < len(value):
        raise ValueError(f"a seed stands there twice: {list(value)}")
    return value


class Dataset(_Section):
    """Which images are learned."""

    name: Name = Field(description="a name that `ctm data` knows")
    source: str | None = Field(
        default=None, description="folder or URL, for data sets that need one"
    )


class Diffusion(_Section):
    """The process and EDM's preconditioning constants (Karras et al. 2022, table 1)."""

    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Diffusion:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class Network(_Section):
    """Size of the U-Net; teacher and student share it."""

    architecture: Literal["ddpmpp"] = "ddpmpp"
    model_channels: Positive = 128
    channel_mult: tuple[Positive, ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: Positive = 4
    attn_resolutions: tuple[Positive, ...] = (16,)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @field_validator("model_channels")
    @classmethod
    def _whole_groups(cls, value: int) -> int:
        if value % 4:
            raise ValueError("model_channels must be a multiple of 4 (the group norms need it)")
        return value


class Training(_Section):
    """One optimisation: how long, how fast, and what is kept of it."""

    steps: Positive = Field(description="optimiser steps")
    batch_size: Positive = Field(description="samples a step, over all processes")
    micro_batch: Positive | None = Field(
        default=None, description="samples a forward pass; null: all"
    )
    learning_rate: float = Field(default=4e-4, gt=0)
    warmup_steps: int = Field(default=0, ge=0, description="linear warm-up of the learning rate")
    decay_steps: int = Field(
        default=0, ge=0, description="linear decay to zero over the last steps"
    )
    optimizer: Literal["radam", "adam"] = "radam"
    ema: tuple[Rate, ...] = Field(default=(0.999,), min_length=1, description="decay a step")
    ema_rampup: float | None = Field(
        default=None, gt=0, description="half-life of the EMA at most this share of the steps done"
    )
    evaluated_ema: Rate | None = Field(default=None, description="null: the first of `ema`")
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    channels_last: bool = False
    checkpoint_every: Positive = 1000
    keep: Positive = Field(default=2, description="checkpoints kept in the run folder")
    snapshots: tuple[Positive, ...] = Field(
        default=(), description="steps whose weights are exported"
    )
    log_every: Positive = 10
    preview_every: int = Field(default=0, ge=0, description="steps between sample grids; 0: none")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_half(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError(
                "fp16 is refused: CTM's fp16 default collapsed when others retrained it; "
                "use bf16 or fp32"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.evaluated_ema is not None and self.evaluated_ema not in self.ema:
            raise ValueError(f"evaluated_ema must be one of ema = {list(self.ema)}")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError("micro_batch must divide batch_size")
        if any(step > self.steps for step in self.snapshots):
            raise ValueError("snapshots lie beyond the last step")
        return self

    @property
    def final_ema(self) -> float:
        """Decay of the EMA that is exported and evaluated."""
        return self.ema[0] if self.evaluated_ema is None else self.evaluated_ema


class Teacher(_Section):
    """An EDM denoiser trained from nothing (Karras et al. 2022)."""

    training: Training
    seed: Seed = 0
    p_mean: float = Field(default=-1.2, description="mean of ln sigma")
    p_std: float = Field(default=1.2, gt=0, description="standard deviation of ln sigma")


class Perceptual(_Section):
    """How images are fed to a perceptual network."""

    resize: int = Field(description="side; 224 in the paper, max(32, side) for small images")

    @field_validator("resize")
    @classmethod
    def _at_least_32(cls, value: int) -> int:
        if value < 32:
            raise ValueError("resize must be at least 32: VGG16 halves its input four times")
        return value


class Dsm(_Section):
    """Denoising score matching beside the consistency loss (paper section 3.2)."""

    enabled: bool = True
    adaptive: bool = Field(default=True, description="lambda from the ratio of gradient norms")
    weight: float = Field(default=1.0, gt=0, description="factor on lambda, or lambda itself")
    p_mean: float = -1.2
    p_std: float = Field(default=1.2, gt=0)
    uniform_max: float = Field(
        default=0.7, gt=0, le=1, description="upper end of xi; 0.7 as released"
    )
    group: int = Field(
        default=2, ge=2, description="the first half of each group draws log-normally"
    )


class Student(_Section):
    """A model distilled from the teacher."""

    objective: Literal["ctm"] = "ctm"
    matching: Literal["soft", "local", "global"] = "soft"
    grid_points: int = Field(default=18, ge=3, description="N: points of the time grid")
    max_heun_steps: Positive | None = Field(
        default=None, description="M: upper end of k; null: N - 1"
    )
    variant: Literal["released", "printed"] = "released"
    target_inner: Literal["model", "ema"] | None = Field(
        default=None,
        description="weights of the target's inner map; null: model if released, else ema",
    )
    target_ema: Rate = Field(default=0.999, description="decay of the stop-gradient network")
    distance: Literal["l2", "pseudo_huber", "stlpips_vgg"] = "l2"
    perceptual: Perceptual | None = Field(
        None, description="for a perceptual distance, and only there"
    )
    dsm: Dsm = Dsm()
    initial: Literal["teacher", "random"] = "teacher"
    training: Training

    @model_validator(mode="after")
    def _consistent(self) -> Student:
        if self.max_heun_steps is not None and self.max_heun_steps > self.grid_points - 1:
            raise ValueError("max_heun_steps must be at most grid_points - 1")
        if self.matching == "global" and self.target_inner is not None:
            raise ValueError("global matching has no inner target map; leave target_inner out")
        if self.distance == "stlpips_vgg" and self.perceptual is None:
            raise ValueError(
                "the distance stlpips_vgg needs perceptual.resize: 224 as in the paper, or "
                "max(32, side)"
            )
        if self.distance != "stlpips_vgg" and self.perceptual is not None:
            raise ValueError(f"perceptual belongs to perceptual distances, not to {self.distance}")
        return self

    @property
    def heun_steps(self) -> int:
        """M, the largest number of Heun steps of the teacher."""
        return self.grid_points - 1 if self.max_heun_steps is None else self.max_heun_steps

    @property
    def inner(self) -> Literal["model", "ema"]:
        """Weights of the target's inner map: live as released, EMA as printed (eq. 3)."""
        if self.target_inner is not None:
            return self.target_inner
        return "model" if self.variant == "released" else "ema"


class Cell(NamedTuple):
    """One way of sampling: a row of the table. ``gamma`` is None where it has no meaning."""

    sampler: str
    nfe: int
    gamma: float | None

    @property
    def label(self) -> str:
        """File-friendly name, e.g. ``gamma/nfe-4/gamma-0.5``."""
        gamma = "none" if self.gamma is None else f"{self.gamma:g}"
        return f"{self.sampler}/nfe-{self.nfe}/gamma-{gamma}"


class SamplerGrid(_Section):
    """NFE x gamma for one sampler."""

    sampler: Literal["gamma", "gamma_paper", "heun", "euler"]
    nfe: tuple[Positive, ...] = Field(min_length=1)
    gamma: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> SamplerGrid:
        if self.sampler.startswith("gamma") != bool(self.gamma):
            raise ValueError(
                "gamma values belong to the samplers gamma and gamma_paper, and only there"
            )
        if self.sampler == "heun" and any(n % 2 == 0 for n in self.nfe):
            raise ValueError("heun on n points takes 2n - 1 evaluations: its nfe must be odd")
        return self

    def cells(self) -> list[Cell]:
        """Every cell once; at NFE 1 gamma adds no noise, so it is left empty."""
        cells = [
            Cell(self.sampler, nfe, None if nfe == 1 else gamma)
            for nfe in self.nfe
            for gamma in (self.gamma or (None,))
        ]
        return list(dict.fromkeys(cells))


class ProtocolCell(_Section):
    """A single cell that a protocol scores."""

    model: Name
    sampler: Literal["gamma", "gamma_paper", "heun", "euler"]
    nfe: Positive
    gamma: float | None = Field(default=None, ge=0, le=1)

    @property
    def cell(self) -> Cell:
        """The cell without its model."""
        return Cell(self.sampler, self.nfe, None if self.nfe == 1 else self.gamma)


class Evaluation(_Section):
    """What is sampled, and by which protocols it is scored."""

    sample_seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    batch_size: Positive = 256
    samplers: dict[Name, tuple[SamplerGrid, ...]]
    protocols: dict[Name, Literal["all"] | tuple[ProtocolCell, ...]] = Field(min_length=1)

    @field_validator("sample_seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _without_repetition(value)


class Experiment(_Section):
    """A teacher, its students, and how they are measured."""

    experiment: Name
    dataset: Dataset
    conditional: bool = Field(default=False, description="class labels are given to the network")
    diffusion: Diffusion = Diffusion()
    network: Network
    teacher: Teacher
    models: dict[Name, Student]
    seeds: tuple[Seed, ...] = Field(
        default=(0,), min_length=1, description="training seeds of the students"
    )
    threads: Positive = Field(default=2, description="CPU threads of a training or evaluation job")
    evaluation: Evaluation

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _without_repetition(value)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        known = {"teacher", *self.models}
        if "teacher" in self.models:
            raise ValueError("`teacher` is the teacher's own name and cannot be a student's")
        for name in self.evaluation.samplers:
            if name not in known:
                raise ValueError(
                    f"evaluation.samplers names the model {name!r}; models are {sorted(known)}"
                )
        for name in sorted(known - set(self.evaluation.samplers)):
            raise ValueError(f"evaluation.samplers lacks the model {name!r}")
        for grid in self.evaluation.samplers["teacher"]:
            if grid.gamma:
                raise ValueError("the teacher has no jumps: its samplers are heun and euler")
        for protocol, cells in self.evaluation.protocols.items():
            for cell in cells if cells != "all" else ():
                assert isinstance(cell, ProtocolCell)
                if cell.cell not in self.cells(cell.model):
                    raise ValueError(
                        f"evaluation.protocols.{protocol} names {cell.model} "
                        f"{cell.cell.label}, which evaluation.samplers does not sample"
                    )
        return self

    def cells(self, model: str) -> list[Cell]:
        """Every cell of a model, in the order of the file."""
        grids = self.evaluation.samplers.get(model, ())
        return list(dict.fromkeys(cell for grid in grids for cell in grid.cells()))

    def protocols(self, model: str) -> dict[str, list[Cell]]:
        """The cells of a model that each protocol scores; protocols without any are left out."""
        chosen: dict[str, list[Cell]] = {}
        for name, wanted in self.evaluation.protocols.items():
            if wanted == "all":
                cells = self.cells(model)
            else:
                cells = [
                    entry.cell
                    for entry in wanted
                    if isinstance(entry, ProtocolCell) and entry.model == model
                ]
            if cells:
                chosen[name] = cells
        return chosen

    def training(self, model: str) -> Training:
        """The training section of the teacher or of a student.

        Raises
        ------
        UserError
            If the experiment has no such student.
        """
        return self.teacher.training if model == "teacher" else self.student(model).training

    def student(self, model: str) -> Student:
        """A student's section; raises as :meth:`training`."""
        if model not in self.models:
            raise UserError(
                f"the experiment {self.experiment} has no student {model!r}; "
                f"its students are {', '.join(self.models)}"
            )
        return self.models[model]

    def runs(self) -> Iterator[tuple[str, int]]:
        """Every (model, training seed): the teacher once, each student with each seed."""
        yield "teacher", self.teacher.seed
        for model in self.models:
            for seed in self.seeds:
                yield model, seed

    def resolved(self, precision: str) -> Experiment:
        """A copy in which every `precision: auto` is replaced by ``precision``."""
        data = self.model_dump()
        for section in (data["teacher"], *data["models"].values()):
            if section["training"]["precision"] == "auto":
                section["training"]["precision"] = precision
        return Experiment.model_validate(data)

    def _ground(self) -> dict[str, Any]:
        data = self.model_dump(mode="json")
        # Where the files came from is no matter: the fingerprint of what they hold is checked.
        ground = {key: data[key] for key in ("conditional", "diffusion", "network")}
        return ground | {"dataset": self.dataset.name}

    def train_hash(self, model: str) -> str:
        """SHA-256 over everything that decides a model's weights but its seed.

        Covers data set, network, diffusion, the teacher's training and, for a student, its own
        section; keys that cannot change weights (:data:`WITHOUT_EFFECT`) are left out.
        """
        data = self.model_dump(mode="json")
        parts = self._ground() | {"teacher": _effective(data["teacher"]), "format": 1}
        if model != "teacher":
            self.student(model)
            parts["student"] = _effective(data["models"][model])
        return sha256_json(parts)

    def evaluation_hash(self, model: str) -> str:
        """SHA-256 over everything that decides a model's rows beside its weights."""
        section = self.evaluation
        return sha256_json(
            {
                "cells": self.cells(model),
                "protocols": self.protocols(model),
                "sample_seeds": section.sample_seeds,
                "batch_size": section.batch_size,
            }
        )


def _effective(section: dict[str, Any]) -> dict[str, Any]:
    training = {k: v for k, v in section["training"].items() if k not in WITHOUT_EFFECT}
    return section | {"training": training}


class Workflow(_Section):
    """The file given to Snakemake: which experiments make up the table."""

    experiments: tuple[str, ...] = Field(
        min_length=1,
        description="names under config/experiments, or paths of YAML files",
    )


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML lets a repeated key win silently; a config must not."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is no text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises
    ------
    UserError
        If the file is missing, is no YAML, repeats a key, or is not a mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.load(file, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise UserError(f"the config file {path} is missing; correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{path} is not readable YAML: {problem}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of keys, not {type(data).__name__}")
    return data


def validated(model: type[ModelT], data: Any, path: str | os.PathLike[str]) -> ModelT:
    """Validate ``data`` read from ``path``; the first mistake becomes one sentence."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(model, error)}") from None


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    # An unknown key explains other mistakes; of a union's branches, the one that fits furthest.
    problems = sorted(
        error.errors(), key=lambda e: (e["type"] != "extra_forbidden", -len(e["loc"]))
    )
    problem = problems[0]
    # The branches of a union appear in the location; they are no keys of the file.
    place = [p for p in problem["loc"] if not str(p).startswith(("literal[", "tuple["))]
    key = ".".join(str(p) for p in place)
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_at(model, place[:-1]))
        return f"unknown key {key!r}; allowed here: {allowed}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    text = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {text}{shown}" if key else text


def _keys_at(model: type[BaseModel], place: list[Any]) -> list[str]:
    """Names of the fields allowed at a location, read from the JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def follow(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return follow(definitions[node["$ref"].rsplit("/", 1)[-1]])
        return [n for sub in node.get("anyOf", []) for n in follow(sub)] or [node]

    nodes = follow(schema)
    for step in place:
        found: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(step, int):
                inner = node.get("items")
            else:
                inner = node.get("properties", {}).get(step) or next(
                    iter(node.get("patternProperties", {}).values()),
                    node.get("additionalProperties"),
                )
            if isinstance(inner, dict):
                found += follow(inner)
        nodes = found
    return sorted({key for node in nodes for key in node.get("properties", {})})


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment.

    Raises
    ------
    UserError
        One sentence with file, key, value and what is allowed.
    """
    return validated(Experiment, read_yaml(path), path)


def load_workflow(path: str | Path) -> Workflow:
    """Read and validate the list of experiments; raises as :func:`load_experiment`."""
    return validated(Workflow, read_yaml(path), path)


def json_schema(model: type[BaseModel]) -> str:
    """The JSON schema of a model as text, as the files under ``workflow/schemas`` hold it."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | model.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    for name, section in (("config", Workflow), ("experiment", Experiment)):
        write_text(f"workflow/schemas/{name}.schema.json", json_schema(section))
