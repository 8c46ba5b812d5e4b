"""What a reader's file says of its data set, read without running it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import tiny

from ctm_core.config import datasets
from ctm_core.config.experiment import Dataset
from ctm_core.models.features.classifier import Recipe
from ctm_core.runtime.errors import UserError

TOY = """
raise RuntimeError("run")
TRAITS = {"splits": ("train",), "flip": True, "source": "required", "assets": ("some-file",)}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a data set ``my-toy``."""
    monkeypatch.setattr(datasets.READERS, "folder", tmp_path)
    (tmp_path / "_shared.py").touch()
    (tmp_path / "my_toy.py").write_text(TOY)
    return tmp_path / "my_toy.py"


def test_a_new_file_is_a_new_dataset(toy: Path) -> None:
    assert datasets.names() == ["my-toy"]
    assert datasets.traits("my-toy").splits == ("train",)
    with pytest.raises(UserError, match="unknown dataset 'digits'; known are my-toy"):
        datasets.traits("digits")
    assert Dataset(name="my-toy", source="here").assets == ()


def test_a_source_that_is_needed(toy: Path) -> None:
    with pytest.raises(ValueError, match="my-toy needs a source"):
        tiny.experiment({"dataset": {"name": "my-toy"}})
    made = tiny.experiment({"dataset": {"name": "my-toy", "source": "here"}})
    assert made.dataset.source == "here"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('TRAITS = {"splits": (), "flip": True}', "TRAITS['splits'] is ()"),
        (
            'TRAITS = {"splits": ("train",), "flip": True, "flips": 1}',
            "TRAITS['flips'] is unknown",
        ),
        ("", "TRAITS"),
    ],
)
def test_wrong_traits_are_one_sentence(toy: Path, line: str, says: str) -> None:
    toy.write_text(line)
    with pytest.raises(UserError) as refused:
        datasets.traits("my-toy")
    sentence = str(refused.value)
    assert str(toy) in sentence and says in sentence and "\n" not in sentence


def test_each_dataset_names_what_it_needs() -> None:
    assert Dataset(name="cifar10").assets == ("cifar10",)
    assert Dataset(name="imagenet64").assets == ("ilsvrc2012",)
    assert Dataset(name="imagenet64", source="elsewhere").assets == ()
    recipe = Recipe(**datasets.traits("fashion-mnist").classifier)
    assert recipe == Recipe(steps=1500, learning_rate=6e-3)
