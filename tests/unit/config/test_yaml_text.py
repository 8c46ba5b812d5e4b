"""YAML as it is read: numbers, keys, lines, and texts that Python cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny

from ctm_core import config
from ctm_core.config import Experiment
from ctm_core.config.yaml_text import line_of
from ctm_core.runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not readable YAML"),
        ("a: 1\nb: 2\na: 3\n", "duplicate key 'a'"),
        ("x: {a: 1, a: 2}\n", "duplicate key 'a'"),
        ("? [1, 2]\n: 3\n", "the key [1, 2] is not text"),
        ("- 1\n- 2\n", "must hold a mapping of keys, not list"),
        ("", "must hold a mapping of keys, not NoneType"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not readable YAML"),
    ],
)
def test_yaml_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"file\.yaml") as error:
        config.read_yaml(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 0.002), ("2E-3", 0.002), ("+1e2", 100), ("1e5", 100_000), ("-.5e1", -5.0),
        ("2.0e-3", 0.002), ("1e400", float("inf")), ("12", 12), ("e5", "e5"), ("1e", "1e"),
        ("0x1e5", 0x1E5), ("'2e-3'", "2e-3"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(f"a: {text}\n")
    made = config.read_yaml(path)["a"]
    assert made == value and type(made) is type(value)


def test_an_exponent_without_a_dot_hashes_as_its_number(tmp_path: Path) -> None:
    path = tiny.write_experiment(tmp_path / "tiny.yaml")
    text = path.read_text()
    assert "learning_rate: 0.002" in text and "steps: 12" in text
    path.write_text(
        text.replace("learning_rate: 0.002", "learning_rate: 2e-3").replace(
            "steps: 12", "steps: 12e0"
        )
    )
    loaded, plain = config.load_experiment(path), tiny.experiment()
    assert loaded == plain
    for model in ("teacher", "ctm"):
        assert loaded.train_hash(model) == plain.train_hash(model)


def test_the_line_of_a_merged_key(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &a\n  x: {y: 1}\nb:\n  <<: *a\n  z: [1, 2]\n")
    assert line_of(path, ["b", "x", "y"]) == 2
    assert line_of(path, ["b", "z", 1]) == 5
    assert line_of(path, ["b", "gone"]) == 3
    assert line_of(path, ["gone"]) is None


def test_yaml_anchors_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: *x\n")
    assert config.read_yaml(path) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": 1, "q": 2},
    }


BOMB = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)]
)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2026-02-31", "a: 0x_", "a: !!int abc", "a: !!float x", "a: !!bool maybe",
        "a: !!timestamp no", "a: " + "1" * 5000, "a: " + "[" * 5000, "a: &a [*a]", BOMB,
        "a: b\x00", "a: \x1b[31m", "a: !!binary $", "<<: 1", "a: !!map 3", "? [a]\n: b",
    ],
)  # fmt: skip
def test_yaml_that_python_cannot_hold_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    try:
        loaded = config.read_yaml(path)
        assert set(loaded) == {"a"}
        config.validated(Experiment, loaded, path)
    except UserError as error:
        assert str(path) in str(error) and str(error).isprintable()
        assert len(str(error)) < 600
    else:
        raise AssertionError("an experiment was made of it")
