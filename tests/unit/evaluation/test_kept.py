"""Small results of a killed evaluation: found again, unless they are damaged or of another key."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctm_core.evaluation.kept import kept
from ctm_core.runtime.files import read_json, write_json

KEY = {"weights": "a", "seed": 0}


def file_of(folder: Path, key: dict[str, object]) -> Path:
    before = set(folder.glob("*"))
    assert kept(folder, key, lambda: {"value": key["seed"]}) == {"value": key["seed"]}
    (made,) = set(folder.glob("*")) - before
    return made


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    file_of(tmp_path, KEY)
    assert kept(tmp_path, KEY, lambda: pytest.fail("made again")) == {"value": 0}


def test_an_edited_or_swapped_result_is_made_again(tmp_path: Path) -> None:
    first, second = file_of(tmp_path, KEY), file_of(tmp_path, KEY | {"seed": 1})
    contents = first.read_bytes(), second.read_bytes()
    edited = read_json(first) | {"result": {"value": 5}}
    for damage in ("edited", "swapped", "cut", "other"):
        if damage == "edited":
            write_json(first, edited)
        elif damage == "swapped":
            first.write_bytes(contents[1])
        else:
            first.write_bytes(b"[]" if damage == "other" else contents[0][:20])
        assert kept(tmp_path, KEY, lambda: {"value": 0}) == {"value": 0}, damage
        assert first.read_bytes() == contents[0]
