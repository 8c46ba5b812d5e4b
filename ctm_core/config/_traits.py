"""What a module says of itself in one literal, read without importing it.

Whatever the configuration has to know of an objective or a sampler is a literal in that one's own
file, such as ``TRAITS = {"teacher": False}``. These files import torch and belong to higher
packages, while the configuration is read whenever Snakemake starts; so they are parsed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from ctm_core.config._section import Section
from ctm_core.runtime.errors import UserError

SectionT = TypeVar("SectionT", bound=Section)

PACKAGE = Path(__file__).parents[1]


def modules(folder: Path) -> list[str]:
    """Names of the modules of a folder, sorted, without those that begin with an underscore."""
    return sorted(file.stem for file in folder.glob("[!_]*.py"))


def literal(file: Path, name: str) -> dict[str, Any]:
    """The dictionary that a module assigns to ``name`` at its top level; empty if it does not."""
    node = _assignments(file).get(name)
    if node is None:
        return {}
    if not isinstance(node, ast.Dict):
        raise UserError(f"{file}: {name} must be a dictionary of literals")
    entries = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise UserError(f"{file}: the keys of {name} must be quoted names")
        try:
            entries[key.value] = ast.literal_eval(value)
        except ValueError:
            raise UserError(
                f"{file}: {name}[{key.value!r}] must be a literal, because it is read without "
                f"running the file; it is {ast.unparse(value)}"
            ) from None
    return entries


def inherited(file: Path, name: str, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """:func:`literal`, and for what it leaves out that of the module that ``"like"`` names."""
    entries = literal(file, name)
    like = entries.pop("like", None)
    if like is None:
        return entries
    if like not in modules(file.parent):
        raise UserError(f"{file}: {name}['like'] is {like!r}: there is no such file beside it")
    if file in below:
        raise UserError(f"{file}: {name}['like'] is {like!r}, which is like itself")
    parent = inherited(file.with_name(f"{like}.py"), name, (*below, file))
    return _overlaid(parent, entries)


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Entries of ``above``, else of ``below``; dictionaries are overlaid in turn, and None leaves
    an entry out.
    """
    made = below | {
        key: _overlaid(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict)
        else value
        for key, value in above.items()
    }
    return {key: value for key, value in made.items() if value is not None}


def read_traits(file: Path, kind: type[SectionT], name: str = "TRAITS") -> SectionT:
    """The literal ``name`` of a module as a section, whose defaults hold for what it leaves out.

    A mistake is a UserError that names the file and the key.
    """
    try:
        return kind.model_validate(inherited(file, name), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = f"{name}{''.join(f'[{part!r}]' for part in problem['loc'])}"
        if problem["type"] == "unknown_key":
            key, known = problem["ctx"]["key"], ", ".join(problem["ctx"]["known"])
            raise UserError(f"{file}: {place}[{key!r}] is unknown; there are {known}") from None
        reason = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: {place} is {problem['input']!r}: {reason}") from None


@dataclass
class Registry(Generic[SectionT]):
    """The modules of a folder by name, with what each says of itself in ``TRAITS``."""

    folder: Path
    kind: type[SectionT]  #: the section of the traits
    unknown: str  #: the sentence on a name that is none, of ``{name!r}`` and ``{known}``
    first: tuple[str, ...] = ()  #: names before the others, which are sorted
    dash: str = "_"  #: what names have in place of a file's underscore

    def names(self) -> list[str]:
        """Names of all modules but those that begin with an underscore."""
        names = [stem.replace("_", self.dash) for stem in modules(self.folder)]
        return sorted(names, key=lambda name: (name not in self.first, name))

    def known(self, name: str) -> str:
        """The name itself, or a ValueError: a validator for pydantic."""
        if name not in (names := self.names()):
            raise ValueError(self.unknown.format(name=name, known=", ".join(names)))
        return name

    def traits(self, name: str) -> SectionT:
        """The traits of a module; UserError if there is no such module, or one is wrong."""
        try:
            file = f"{self.known(name).replace(self.dash, '_')}.py"
        except ValueError as error:
            raise UserError(str(error)) from None
        return read_traits(self.folder / file, self.kind)


@cache
def _assignments(file: Path) -> dict[str, ast.expr]:
    """Values of the module-level assignments to a single name."""
    values: dict[str, ast.expr] = {}
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                values[name] = value
    return values
