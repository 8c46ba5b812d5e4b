"""Style, types, and the files that are generated from others."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from fixtures.project import ROOT, copy_project

from ctm_core.config import Experiment, Workflow, json_schema


def check(*command: str, cwd: Path = ROOT) -> None:
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    check("ruff", "check", "--no-cache", ".")


def test_mypy() -> None:
    check("mypy")


def test_snakefmt() -> None:
    check("snakefmt", "--check", "Snakefile", "workflow/rules")


def test_snakemake_lint(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    check("snakemake", "--lint", cwd=project.path)


def test_the_entry_is_short_and_merges_no_config() -> None:
    text = (ROOT / "Snakefile").read_text()
    assert len(text.splitlines()) <= 60
    files = [text, *(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))]
    assert not any(re.search(r"^\s*configfile:", file, re.M) for file in files)


def test_every_rule_has_log_benchmark_software_and_no_retries() -> None:
    rules = 0
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        for body in re.split(r"^\s*rule\b.*:$", file.read_text(), flags=re.M)[1:]:
            rules += 1
            for directive in ("log", "benchmark", "conda", "shell", "output"):
                assert re.search(rf"^\s+{directive}:", body, re.M), (file.name, directive, body)
            # On a cluster a rule's retries multiply with the profile's.
            assert "retries" not in body
    assert rules == 10


@pytest.mark.parametrize(
    "name, model",
    [
        ("config", Workflow),
        ("experiment", Experiment),
    ],
)
def test_schemas_are_current(name: str, model: type) -> None:
    stored = (ROOT / f"workflow/schemas/{name}.schema.json").read_text()
    assert stored == json_schema(model), "run `python -m ctm_core.config`"
    assert json.loads(stored)["additionalProperties"] is False


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("name", ["lock.txt", "lock-cpu.txt", "lock-volta.txt"])
def test_locks_pin_every_requirement_exactly(name: str) -> None:
    lines = [
        line for line in (ROOT / "requirements" / name).read_text().splitlines() if line[0] != "#"
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ =*]+(  ; \S.*)?", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    everything = set(extras) - {"all"}
    assert extras["all"] == [f"{project['name']}[{','.join(sorted(everything))}]"]
    wanted = [*project["dependencies"], *(name for e in everything for name in extras[e])]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", w)[0]).lower() for w in wanted}
    assert names <= set(_pins(name))


def test_the_cpu_lock_has_no_cuda_and_no_other_version() -> None:
    cuda, cpu = _pins("lock.txt"), _pins("lock-cpu.txt")
    assert not [name for name in cpu if name.startswith(("nvidia", "cuda", "triton"))]
    differing = {name for name in cpu if cuda.get(name) != cpu[name]}
    assert differing == {"torch", "torchvision"}


def test_the_lock_for_volta_differs_in_torch_alone() -> None:
    default, volta = _pins("lock.txt"), _pins("lock-volta.txt")
    builds = ("nvidia", "cuda", "triton", "torch", "torchvision")
    assert {n for n in default | volta if default.get(n) != volta.get(n)} == {
        n for n in default | volta if n.startswith(builds) and default.get(n) != volta.get(n)
    }
    assert volta["torch"].startswith("2.10.")


def test_the_conda_file_agrees_with_the_lock() -> None:
    pins = _pins("lock.txt")
    (pip,) = [
        entry["pip"]
        for entry in yaml.safe_load((ROOT / "workflow/envs/ctm.yaml").read_text())["dependencies"]
        if isinstance(entry, dict)
    ]
    assert len(pip) > 20
    assert all(pins[pin.split("==")[0]] == pin.split("==")[1] for pin in pip), "run `make lock`"
