"""From a YAML file to a typed section, or to one sentence about what is wrong in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from ctm_core.config._section import Section
from ctm_core.config.experiment import Experiment
from ctm_core.runtime.errors import UserError

ModelT = TypeVar("ModelT", bound=BaseModel)


class Workflow(Section):
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
                    None, None, f"the key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises
    ------
    UserError
        If the file is missing, is not YAML, repeats a key, or is not a mapping.
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
    # The branches of a union appear in the location; they are not keys of the file.
    place = [p for p in problem["loc"] if not str(p).startswith(("literal[", "tuple[", "<"))]
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
        branches = [*node.get("anyOf", []), *node.get("oneOf", [])]
        return [n for sub in branches for n in follow(sub)] or [node]

    nodes = follow(schema)
    for step in place:
        inside: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(step, int):
                inner = node.get("items")
            else:
                inner = node.get("properties", {}).get(step) or next(
                    iter(node.get("patternProperties", {}).values()),
                    node.get("additionalProperties"),
                )
            if isinstance(inner, dict):
                inside += follow(inner)
        nodes = inside
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
