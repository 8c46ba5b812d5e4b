"""Hashes that name the run folders of finished trainings: a release must not change one.

``train_hashes.json`` holds the hash of every model of every committed experiment, for both
precisions that ``auto`` may become. A key that is added later and stands at its default must
leave them alone, or everybody's finished training would be made again.

After adding an experiment or a model (never to silence a difference):
``python tests/unit/config/test_train_hashes.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ctm_core.config import load_experiment

ROOT = Path(__file__).resolve().parents[3]
PINS = Path(__file__).with_name("train_hashes.json")
FILES = {
    file.relative_to(ROOT).as_posix(): file
    for pattern in ("config/experiments/*.yaml", "studies/*/*.yaml")
    for file in sorted(ROOT.glob(pattern))
    # Candidates of a search are made anew whenever the methods change.
    if not file.stem.endswith("-search")
    and "experiment" in (yaml.safe_load(file.read_text(encoding="utf-8")) or {})
}


def hashes(file: Path) -> dict[str, str]:
    """The train hash of every model that an experiment trains or converts, by precision."""
    experiment = load_experiment(file)
    models = [*(["teacher"] if experiment.teacher is not None else []), *experiment.models]
    return {
        f"{model} {precision}": experiment.resolved(precision).train_hash(model)
        for model in models
        for precision in ("fp32", "bf16")
    }


@pytest.mark.parametrize("name", FILES)
def test_hashes_are_those_of_finished_trainings(name: str) -> None:
    assert hashes(FILES[name]) == json.loads(PINS.read_text(encoding="utf-8"))[name]


def test_no_experiment_has_gone() -> None:
    assert set(json.loads(PINS.read_text(encoding="utf-8"))) == set(FILES)


if __name__ == "__main__":
    pinned = json.loads(PINS.read_text(encoding="utf-8")) if PINS.exists() else {}
    for name, file in FILES.items():
        pinned[name] = hashes(file) | pinned.get(name, {})
    PINS.write_text(json.dumps(pinned, indent=2) + "\n", encoding="utf-8")
