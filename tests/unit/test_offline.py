"""Jobs open no connection: what is missing ends in a sentence, not in a download."""

from __future__ import annotations

import ast
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import offline, tiny
from fixtures.tiny import Ended, Trained

from ctm_core.data.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]
#: What opens connections; `socket` alone also gives the host's name and a free port.
NETWORK = {"aiohttp", "fsspec", "ftplib", "http", "httpx", "huggingface_hub", "pooch", "requests"}
NETWORK |= {"urllib.request", "urllib3", "torch.hub", "xmlrpc"}


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Connections, to this machine too, of a project without external files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path / "nowhere"))
    return offline.watch(monkeypatch, loopback=False)


def test_a_connection_is_noticed(away: list[str]) -> None:
    for connect in (
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("example.org", 80),
    ):
        with pytest.raises(OSError, match="no network"):
            connect()
    assert away == ["127.0.0.1", "example.org"]


def test_only_fetching_can_connect() -> None:
    found = {}
    for file in sorted((ROOT / "ctm_core").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            else:
                continue
            parts = {".".join(n.split(".")[:k]) for n in names for k in (1, 2)}
            if hit := parts & NETWORK:
                found.setdefault(file.relative_to(ROOT / "ctm_core").as_posix(), set()).update(hit)
    assert found == {"data/assets/transfer.py": {"requests", "urllib3"}}
    users = {
        file.relative_to(ROOT / "ctm_core").as_posix()
        for file in (ROOT / "ctm_core").rglob("*.py")
        if "ctm_core.data.assets.transfer import" in (text := file.read_text(encoding="utf-8"))
        or "ctm_core.data.assets.fetching import" in text
    }
    assert users == {"data/assets/fetching.py", "cli/asset_verbs.py", "data/readers/_download.py"}


CONFIGS = ROOT / "config"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["assets"], None),
        (["assets", "--config", CONFIGS / "paper.yaml", "--json"], None),
        (["data", "--dataset", "cifar10", "--output", "out"], "cifar-10-python.tar.gz"),
        (["data", "--dataset", "imagenet64", "--output", "out"], "ILSVRC2012"),
        (
            ["features", "reference", "--protocol", CONFIGS / "protocols/edm-cifar10.yaml"]
            + ["--output", "out.safetensors"],
            "inception",
        ),
        (["convert", "model043000.pt", "--output", "out"], "model043000.pt"),
        (["report", "--results", "results"], "results"),
    ],
)
def test_verbs_without_their_files(
    away: list[str], ctm: Callable[..., Ended], words: list[str | Path], says: str | None
) -> None:
    ended = ctm(*words)
    assert away == []
    assert ended.code == (0 if says is None else 2), ended.stderr
    assert says is None or says in ended.stderr


def test_a_training_without_the_file_of_its_distance(
    away: list[str], ctm: Callable[..., Ended], digits: Dataset, teacher: Trained
) -> None:
    config = tiny.write_experiment(
        Path("tiny.yaml"),
        {
            "models.ctm.distance": "lpips_vgg",
            "models.ctm.perceptual": {"resize": 64, "pooling": "max"},
        },
    )
    words = ["--config", config, "--model", "ctm", "--data", digits.path, "--output", "out"]
    ended = ctm("train", *words, "--teacher", teacher.weights)
    assert away == [] and ended.code == 2
    assert "(vgg16) is missing: run `ctm assets fetch vgg16`" in ended.stderr


def test_verbs_with_their_files(
    away: list[str],
    ctm: Callable[..., Ended],
    digits: Dataset,
    teacher: Trained,
    student: Trained,
    references: list[Path],
) -> None:
    config = tiny.write_experiment(Path("tiny.yaml"))
    common = ["--config", config, "--data", digits.path]
    for words in (
        ["data", "--dataset", "digits", "--output", "digits"],
        ["train", *common, "--model", "ctm", "--teacher", teacher.weights, "--output", "student"],
        ["sample", student.weights, "-n", "4"],
        ["evaluate", "--config", config, "--model", "ctm", "--weights", student.weights]
        + ["--output", "results/tiny/ctm/seed-0/step-12", *references],
        ["table", "results/tiny/ctm/seed-0/step-12/evaluation.json"],
        ["report", "--results", "results"],
        ["likelihood", student.weights, "--data", digits.path, "-n", "2"],
    ):
        ended = ctm(*words)
        assert away == [] and ended.code == 0, (words[0], ended.stderr)
