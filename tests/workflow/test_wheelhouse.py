"""A folder of wheels for machines without internet access, and installs around another torch."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from fixtures.project import ROOT

REQUIREMENTS = ROOT / "requirements"
VERSION = "{}.{}".format(*sys.version_info)
LOCK = """# Made from somewhere.
nvidia-nothing==1.0  ; platform_system == "Linux"
tabulate==0.10.0
torch==2.14.1
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """requirements/wheelhouse.py."""
    monkeypatch.syspath_prepend(str(REQUIREMENTS))
    return importlib.import_module("wheelhouse")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text(LOCK)
    return path


def run(*words: str | Path, before: Sequence[str] = ()) -> tuple[int, str]:
    """The script as make calls it: its exit code and all it says."""
    command = [*before, sys.executable, str(REQUIREMENTS / "wheelhouse.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def collected(script: ModuleType, folder: Path, lock: Path, python: str = VERSION) -> Path:
    """What `collect` leaves, with wheels that are none."""
    folder.mkdir()
    wanted = script.pins(lock, torch=True)
    head = script.HEAD.format(python, "manylinux_2_28_x86_64")
    (folder / script.LIST).write_text("\n".join([head, *wanted]) + "\n")
    for name in ("nvidia_nothing-1.0", "tabulate-0.10.0", "torch-2.14.1"):
        (folder / f"{name}-py3-none-any.whl").write_text(name)
    sums = [f"{script.digest(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / script.SUMS).write_text("".join(sums))
    return folder


def test_what_is_whole_is_accepted(script: ModuleType, tmp_path: Path, lock: Path) -> None:
    folder = collected(script, tmp_path / "wheels", lock)
    assert run("check", folder, "--lock", lock) == (0, "")
    assert run("check", folder, "--lock", lock, "--without-torch") == (0, "")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("list", "is no complete wheelhouse: it lacks SHA256SUMS or requirements.txt; copy it"),
        ("file", "1 of 4 files are missing (tabulate-0.10.0-py3-none-any.whl); copy it again"),
        ("bytes", "1 of 4 files are damaged (torch-2.14.1-py3-none-any.whl); copy it again"),
        ("python", f"was collected for Python 3.9, but this is Python {VERSION}; give the other"),
        ("lock", "was collected from another lock: it lacks tabulate==0.11.0; copy it again"),
    ],
)
def test_half_a_wheelhouse_is_one_sentence(
    script: ModuleType, tmp_path: Path, lock: Path, fault: str, words: str
) -> None:
    folder = tmp_path / "wheels"
    collected(script, folder, lock, "3.9" if fault == "python" else VERSION)
    match fault:
        case "list":
            (folder / script.SUMS).unlink()
        case "file":
            (folder / "tabulate-0.10.0-py3-none-any.whl").unlink()
        case "bytes":
            (folder / "torch-2.14.1-py3-none-any.whl").write_text("torch-2.14")
        case "lock":
            lock.write_text(LOCK.replace("0.10.0", "0.11.0"))
    code, said = run("check", folder, "--lock", lock)
    assert code == 2 and said.startswith("wheelhouse: ") and said.count("\n") == 1
    assert words in said


def test_pins_and_names(script: ModuleType, lock: Path) -> None:
    assert script.pins(lock, torch=False) == ["tabulate==0.10.0"]
    assert len(script.pins(lock, torch=True)) == 3
    names = script.platforms("manylinux_2_28_x86_64")
    assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"} <= {*names}
    assert "manylinux_2_29_x86_64" not in names and len(names) == 24 + 3
    assert script.platforms("macosx_14_0_arm64") == ["macosx_14_0_arm64"]
    for wheel, expected in (
        ("a-1-cp312-cp312-manylinux_2_17_x86_64.whl", True),
        ("a-1-cp39-abi3-manylinux_2_17_x86_64.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-linux_x86_64.whl", False),
    ):
        assert script.fits(wheel, "3.12") == expected


@pytest.mark.system("wheelhouse")
def test_a_wheelhouse_installs_without_a_network(tmp_path: Path) -> None:
    lock, folder, venv = tmp_path / "lock.txt", tmp_path / "wheels", tmp_path / "venv"
    # The second comes as source alone.
    lock.write_text("tabulate==0.10.0\nantlr4-python3-runtime==4.9.3\n")
    assert run("resolve", "--lock", lock, "--python", "3.13")[0] == 0
    code, said = run("collect", folder, "--lock", lock)
    assert code == 0, said
    assert {path.suffix for path in folder.iterdir()} == {".whl", ".txt", ""}
    offline = ["unshare", "--net", *(["--map-root-user"] if os.getuid() else [])]
    assert run("check", folder, "--lock", lock, before=offline) == (0, "")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install"]
    install += ["--no-index", "--find-links", str(folder), "-r", str(folder / "requirements.txt")]
    done = subprocess.run([*offline, *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    subprocess.run([venv / "bin/python", "-c", "import antlr4, tabulate"], check=True)
    lock.write_text("tabulate==0.0.999\n")
    code, said = run("collect", folder, "--lock", lock)
    assert code == 2 and "tabulate==0.0.999" in said and said.count("\n") == 1


# -- the torch of another Python ------------------------------------------------------------------


def package(site: Path, name: str, version: str) -> None:
    """A package that is nothing but its name and version."""
    (site / f"{name}.py").write_text(f"__version__ = {version!r}\n")
    metadata = site / f"{name}-{version}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another Python, without torch."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    return tmp_path / "other"


def install_around(other: Path, venv: Path, lock: Path) -> subprocess.CompletedProcess[str]:
    command = [other / "bin/python", REQUIREMENTS / "own_torch.py", venv, lock]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=300)


def test_an_environment_around_the_torch_of_another_python(tmp_path: Path, other: Path) -> None:
    lock, venv = tmp_path / "lock.txt", tmp_path / "venv"
    lock.write_text("torch==2.14.1\nnvidia-cublas==13.1\n")
    (site,) = other.glob("lib/python*/site-packages")
    refused = install_around(other, venv, lock)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has no torch; give the Python that has one by PYTHON=..." in refused.stderr
    package(site, "torch", "2.8.0")
    refused = install_around(other, venv, lock)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has torch 2.8.0, but 2.9 or newer is needed" in refused.stderr
    assert not venv.exists()
    shutil.rmtree(site / "torch-2.8.0.dist-info")
    package(site, "torch", "2.9.0a0+50eac811a6.nv25.09")
    package(site, "torchvision", "0.24.0")
    before = sorted(site.rglob("*"))
    done = install_around(other, venv, lock)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [venv / "bin/python", "-c", "import torch; print(torch.__file__)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert Path(shown.strip()) == site / "torch.py"
    assert [path for path in sorted(site.rglob("*")) if "__pycache__" not in str(path)] == before
    again = install_around(venv, venv, lock)  # the environment is active
    assert again.returncode == 0, again.stderr
