"""Every key of every configuration file has a test that shows what it changes.

Such tests are marked with :func:`fixtures.sections.shows`; most are in ``keys/``. They are
collected from the text of the unit tests, so nothing has to be run for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import sections

TESTS = Path(__file__).parents[2]


def marks(text: str) -> Iterator[tuple[str, str]]:
    """Each test that is marked, and each key that it shows."""
    for node in ast.walk(ast.parse(text)):
        for decorator in getattr(node, "decorator_list", ()):
            match decorator:
                case ast.Call(func=ast.Name(id="shows"), args=arguments):
                    for argument in arguments:
                        yield node.name, ast.literal_eval(argument)


def shown() -> dict[str, set[str]]:
    """The tests that show each key, as ``file::test``."""
    found: dict[str, set[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        if "shows(" in (text := file.read_text(encoding="utf-8")):
            for test, key in marks(text):
                found.setdefault(key, set()).add(f"{file.name}::{test}")
    return found


def test_every_key_is_shown() -> None:
    missing = sorted(sections.keys() - shown().keys())
    assert not missing, f"no test shows what these keys change: {', '.join(missing)}"


def test_no_test_shows_a_key_that_does_not_exist() -> None:
    unknown = shown().keys() - sections.keys()
    assert not unknown, {key: shown()[key] for key in unknown}


def test_only_tests_that_run_show_keys() -> None:
    functions = {place.split("::")[1] for tests in shown().values() for place in tests}
    assert functions and all(name.startswith("test_") for name in functions)


def test_there_are_the_keys_of_every_section() -> None:
    keys = sections.keys()
    assert len(keys) >= 228
    assert {name.split(".")[0] for name in keys} >= sections.defined()


@pytest.mark.parametrize("key", ["Training.accumulation", "SamplerGrid.nfe", "Ours.step"])
def test_sections_in_sections_are_walked(key: str) -> None:
    assert {key} <= sections.keys()


def test_marks_are_read() -> None:
    text = "@shows('A.a', 'A.b')\n@shows('B.c')\ndef test_it():\n    pass\n"
    assert list(marks(text)) == [("test_it", "A.a"), ("test_it", "A.b"), ("test_it", "B.c")]
