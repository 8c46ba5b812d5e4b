"""Literals that modules carry, read without importing them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from ctm_core.config._section import Section
from ctm_core.config._traits import inherited, literal, modules, read_traits
from ctm_core.runtime.errors import UserError


class Kind(Section):
    teacher: bool = True
    inner: Literal["edm", "cm"] = "edm"
    label: str = ""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text("raise ImportError('this is read, not run')\n" + text)
    return path


def test_modules_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "__init__.py", "_private.py", "notes.txt"):
        (tmp_path / name).touch()
    assert modules(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("start", ["TRAITS = ", "TRAITS: dict[str, Any] = "])
def test_a_literal_is_read_without_running_the_file(tmp_path: Path, start: str) -> None:
    file = write(tmp_path, start + "{'teacher': False, 'label': 'a' 'b'}\nOTHER = max(1, 2)\n")
    assert literal(file, "TRAITS") == {"teacher": False, "label": "ab"}
    assert literal(file, "NOTHING") == {}
    assert read_traits(file, Kind) == Kind(teacher=False, label="ab")


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    assert read_traits(write(tmp_path, "x = 1\n"), Kind) == Kind()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{'teachers': True}",
            r"TRAITS\['teachers'\] is unknown; there are teacher, inner, label",
        ),
        ("{'teacher': not True}", r"TRAITS\['teacher'\] must be a literal.*it is not True"),
        ("{'teacher': 1}", r"TRAITS\['teacher'\] is 1: Input should be a valid boolean"),
        ("{'inner': 'vp'}", r"TRAITS\['inner'\] is 'vp': Input should be 'edm' or 'cm'"),
        ("{'label': True}", r"TRAITS\['label'\] is True: true and false"),
        ("{**BASE}", "the keys of TRAITS must be quoted names"),
        ("dict(teacher=True)", "TRAITS must be a dictionary of literals"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write(tmp_path, f"TRAITS = {text}\n")
    with pytest.raises(UserError, match=message) as error:
        read_traits(file, Kind)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_what_is_left_out_is_taken_from_the_file_that_it_is_like(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(
        "TRAITS = {'teacher': False, 'settings': {'a': {'default': 1, 'minimum': 0}, 'b': {}}}"
    )
    (tmp_path / "middle.py").write_text("TRAITS = {'like': 'base', 'label': 'x'}")
    changed = "{'a': {'default': 2}, 'b': None}"
    file = write(tmp_path, f"TRAITS = {{'like': 'middle', 'settings': {changed}}}")
    assert inherited(file, "TRAITS") == {
        "teacher": False,
        "label": "x",
        "settings": {"a": {"default": 2, "minimum": 0}},
    }


def test_a_file_that_is_like_none(tmp_path: Path) -> None:
    file = write(tmp_path, "TRAITS = {'like': 'absent'}")
    with pytest.raises(UserError, match=r"mine\.py: TRAITS\['like'\] is 'absent': there is no"):
        read_traits(file, Kind)
    itself = tmp_path / "itself.py"  # a file is read once
    itself.write_text("TRAITS = {'like': 'itself'}")
    with pytest.raises(UserError, match="is like itself"):
        read_traits(itself, Kind)
