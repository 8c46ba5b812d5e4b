"""YAML files as plain data: strict where YAML is lax, bounded where it is not.

YAML 1.1 reads ``2e-3`` as text, lets a repeated key win in silence, and expands a kilobyte of
nested merges into gigabytes. Here ``2e-3`` is the number it is meant to be, and the rest is one
sentence with the line.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import PathLike, printable, read_bytes

#: Bytes of a file, its keys and values, and key-value pairs that its merges (``<<``) may bring in.
LARGEST_FILE = 4 * 2**20
MOST_VALUES = 30_000
MOST_MERGED = 20_000

_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's numbers, unique text keys and bounded merges."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.values = self.merged = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            problem = f"it has more than {MOST_VALUES:,} keys and values"
            raise yaml.composer.ComposerError(None, None, problem, self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                _refuse(f"the key {key!r} is not text", key_node)
            if key in keys:
                _refuse(f"duplicate key {key!r}", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        merges = any(key.tag == _MERGE for key, _ in node.value)
        super().flatten_mapping(node)
        self.merged += len(node.value) if merges else 0
        if self.merged > MOST_MERGED:
            _refuse("its merges (<<) bring in too many keys", node)

    def construct_number(self, node: Any) -> float | int:
        text = str(node.value)
        value = float(text)
        # A whole number, such as 1e5 steps, stays one; floats are exact below 2**53.
        whole = "." not in text and value.is_integer() and abs(value) < 2**53
        return int(value) if whole else value


def _refuse(problem: str, node: Any) -> None:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_implicit_resolver("!exponent", _EXPONENT, list("-+.0123456789"))
_Loader.add_constructor("!exponent", _Loader.construct_number)
# The first resolver that fits wins: ours is to come before YAML 1.1's, which needs a dot.
for resolvers in _Loader.yaml_implicit_resolvers.values():
    resolvers.sort(key=lambda entry: entry[0] != "!exponent")


def read_yaml(path: PathLike) -> dict[str, Any]:
    """Read a YAML mapping; UserError if that is not what the file holds, or it is too large."""
    loader = None
    try:
        text = _text(path)
        loader = _Loader(text)
        data = loader.get_single_data()
    except UserError:
        raise
    except (yaml.YAMLError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is not readable YAML: {_reason(error)}") from None
    except Exception as error:  # PyYAML's constructors raise what Python's do: dates, !!int abc
        line = "" if loader is None else f" near line {loader.line + 1}"
        raise UserError(f"{path} is not readable YAML: {_reason(error)}{line}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of keys, not {type(data).__name__}")
    return data


def _text(path: PathLike) -> str:
    if not os.path.lexists(path):
        raise UserError(f"the config file {path} is missing; correct the path")
    try:
        return read_bytes(path, LARGEST_FILE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable YAML: it is not UTF-8 text ({error})") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"the value {error} cannot be read"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return printable(f"{error.problem} in line {error.problem_mark.line + 1}", 300)
    return printable(" ".join(str(error).split()), 300)


def line_of(path: PathLike, keys: list[Any]) -> int | None:
    """The line of a file, from 1, of a key given from the outermost; None if it is not found."""
    try:
        node = yaml.compose(_text(path), Loader=_Loader)
    except (UserError, OSError, yaml.YAMLError, RecursionError):
        return None
    line = None
    for key in keys:
        inner = _inner(node, key)
        if inner is None:
            break
        line, node = inner
    return line


def _inner(node: Any, key: Any) -> tuple[int, Any] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        inner = node.value[key]
        return inner.start_mark.line + 1, inner
    if not isinstance(node, yaml.MappingNode):
        return None
    for key_node, inner in node.value:
        if key_node.tag != _MERGE and key_node.value == str(key):
            return key_node.start_mark.line + 1, inner
    for key_node, inner in node.value:
        if key_node.tag == _MERGE:
            merged = inner.value if isinstance(inner, yaml.SequenceNode) else [inner]
            for one in merged:
                if one is not node and (hit := _inner(one, key)) is not None:
                    return hit
    return None
