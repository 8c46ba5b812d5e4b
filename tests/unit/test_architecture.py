"""The layout of ``ctm_core``: eleven packages, imports downward only, distinct file names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from fixtures.project import ROOT

PACKAGE = ROOT / "ctm_core"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = [PACKAGE, *sorted({file.parent for file in FILES} - {PACKAGE})]


def dotted(file: Path) -> str:
    """The name under which a file is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(file) for file in FILES}


def module_of(name: str) -> str:
    """The module that an imported name is or is part of."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@cache
def imports(file: Path) -> frozenset[str]:
    """Modules of ctm_core that a file imports: in functions and under TYPE_CHECKING too."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return frozenset(module_of(name) for name in names if name.split(".")[0] == "ctm_core")


def arrows(folder: Path) -> dict[str, set[str]]:
    """Imports between what stands in a folder: its files and its sub-folders."""
    prefix, found = dotted(folder / "__init__.py") + ".", {}
    for file in sorted(folder.rglob("*.py")):
        box = file.relative_to(folder).parts[0].removesuffix(".py")
        inside = {name for name in imports(file) if name.startswith(prefix)}
        others = {name.removeprefix(prefix).split(".")[0] for name in inside}
        found.setdefault(box, set()).update(others - {box})
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Boxes that import each other, directly or by way of others; empty if none do."""
    graph = {box: set(others) for box, others in graph.items()}
    while leaves := [box for box, others in graph.items() if not others & set(graph)]:
        for box in leaves:
            del graph[box]
    return sorted(graph)


def levels() -> list[tuple[int, str]]:
    """The packages with their levels, from the table of architecture.md, the highest first."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return [
        (int(n), name) for n, name in re.findall(r"^\| (\d+) \| `(\w+)/` \|", text, flags=re.M)
    ]


def test_the_listing_fits_on_one_screen() -> None:
    shown = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert shown == packages | {"__init__.py"}
    assert len(packages) <= 11
    assert packages == {name for _, name in levels()}


def test_imports_run_downward_only() -> None:
    level = {name: number for number, name in levels()}
    for box, others in arrows(PACKAGE).items():
        if box != "__init__":
            upward = {name for name in others if level[name] >= level[box]}
            assert not upward, f"{box} (level {level[box]}) imports {upward}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_nothing_imports_each_other(folder: Path) -> None:
    assert cycle(arrows(folder)) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_a_file_name_stands_for_one_thing() -> None:
    stems = [file.stem for file in FILES if not file.stem.startswith("__")]
    assert twice([*stems, *(folder.name for folder in FOLDERS[1:])]) == []


def test_picture_shows_every_package() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    shown = re.findall(r'class="package"[^>]*>([^<]*)<', picture)
    assert sorted(shown) == sorted(f"{name}/" for _, name in levels())
