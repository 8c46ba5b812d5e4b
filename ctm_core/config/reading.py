"""From a YAML file to a typed section, or to one sentence about what is wrong in it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ctm_core.config._section import Section, Text
from ctm_core.config.experiment import Experiment
from ctm_core.config.yaml_text import line_of, read_yaml
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import printable

ModelT = TypeVar("ModelT", bound=BaseModel)

_KEY = re.compile(r"([a-z_]+(?:\.[\w-]+)*): ")


class Workflow(Section):
    """The file given to Snakemake: which experiments make up the table."""

    experiments: tuple[Text, ...] = Field(
        min_length=1,
        max_length=1000,
        description="names under config/experiments, or paths of YAML files",
    )


def validated(model: type[ModelT], data: Any, path: str | os.PathLike[str]) -> ModelT:
    """Validate plain data that was read from ``path``.

    The first mistake is a UserError with file, key, value, what is allowed and, in YAML, the line.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        sentence, place = _sentence(error)
        line = line_of(path, place) if Path(path).suffix in (".yaml", ".yml") else None
        where = "" if line is None else f" (line {line})"
        raise UserError(f"{path}: {sentence}{where}") from None


def _sentence(error: ValidationError) -> tuple[str, list[Any]]:
    """What the first mistake is, and the place of its key."""
    # An unknown key explains other mistakes; of a union's branches, the one that fits furthest.
    problem = min(error.errors(), key=lambda e: (e["type"] != "unknown_key", -len(e["loc"])))
    # The branches of a union appear in the location; they are not keys of the file.
    place = [p for p in problem["loc"] if not str(p).startswith(("literal[", "tuple[", "<"))]
    if unknown := problem["type"] == "unknown_key":
        place.append(problem["ctx"]["key"])
    key = ".".join(str(p) for p in place)
    if unknown:
        allowed = ", ".join(sorted(problem["ctx"]["known"]))
        return f"unknown key {printable(key)!r}; allowed here: {allowed}", place
    if problem["type"] == "missing":
        return f"the key {key!r} is missing", place
    text = problem["msg"].removeprefix("Value error, ")
    if named := _KEY.match(text):  # a section's sentence on one of its keys, or below them
        place += named[1].split(".")
        key, text = ".".join(str(p) for p in place), text[named.end() :]
    given = problem.get("input")
    shown = ""
    if isinstance(given, str | int | float | bool):
        shown = f" (given: {printable(repr(given), 200)})"
    return (f"{key}: {text}{shown}" if key else text), place


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment; a mistake is a UserError with file, key, value and what is allowed."""
    return validated(Experiment, read_yaml(path), path)


def json_schema(model: type[BaseModel]) -> str:
    """The JSON schema of a model as text, as the files under ``workflow/schemas`` hold it."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | model.model_json_schema(), indent=2) + "\n"
