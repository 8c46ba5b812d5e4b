"""Predicted passes of an evaluation against those that its networks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import tiny
from fixtures.tiny import Trained

from ctm_core.config.protocols import Protocol, load_protocol
from ctm_core.data.dataset import Dataset
from ctm_core.evaluation.evaluate import evaluate
from ctm_core.evaluation.metrics.reference import write_reference
from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.plan.passes import sampled

METRICS = {"metrics": ["fd", "trajectory"], "trajectory": {"noises": 5, "points": 6}}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "tiny": tiny.PROTOCOL | METRICS,
    # Other samples: drawn once more.
    "tiny-pooled": tiny.POOLED | {"samples": 20},
}
CHANGES: dict[str, Any] = {
    "evaluation.samplers.ctm": [
        {"sampler": "gamma", "nfe": [1, 2], "gamma": [0, 1]},
        {"sampler": "gamma", "nfe": [2], "gamma": [1], "times": [0.8]},
        {"sampler": "heun", "nfe": [1, 3]},
        {"sampler": "euler", "nfe": [2]},
    ],
    "evaluation.likelihood": {"models": ["ctm"], "images": 3, "tolerance": 0.1},
}


@pytest.mark.parametrize("model", ["teacher", "ctm"])
def test_an_evaluation_does_the_passes_that_were_predicted(
    teacher: Trained,
    student: Trained,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    made = tiny.experiment(CHANGES)
    protocols: dict[str, Protocol] = {}
    references = []
    for name, described in PROTOCOLS.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(described), encoding="utf-8")
        protocols[name] = load_protocol(file)
        if made.protocols(model).get(name):
            references.append(tmp_path / f"{name}.safetensors")
            write_reference(references[-1], protocols[name], digits)
    passes = {True: 0, False: 0}
    forward = DDPMpp.forward

    def counted(self: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes[self.time_s] += len(x)
        return forward(self, x, *rest)

    monkeypatch.setattr(DDPMpp, "forward", counted)
    weights = teacher.weights if model == "teacher" else student.weights
    result = evaluate(
        made,
        model,
        weights,
        references,
        seed=0,
        output=tmp_path / "out",
        runs=tmp_path / "runs",
        teacher=None if model == "teacher" else teacher.weights,
        data=[digits.path],
    )
    found = sampled(made, protocols, model, 12)
    spent = sum(row["nfe"] * row["n"] for row in result["rows"] if row["sampler"] == "ode")
    own = found.sampling + found.previews + found.trajectory + spent
    if model == "teacher":
        assert passes == {True: 0, False: own + found.trajectory_teacher}
        assert found.likelihood == 0
    else:
        assert passes == {True: own, False: found.trajectory_teacher}
        assert found.likelihood == 3 and spent > 0
    assert found.features == {
        name: 2 * protocols[name].samples * len(cells)
        for name, cells in made.protocols(model).items()
    }


def test_snapshots_are_sampled_as_they_are_scored() -> None:
    made = tiny.experiment(
        {
            "evaluation.samplers.ctm": [
                {"sampler": "gamma", "nfe": [1, 2], "gamma": [0]},
                {"sampler": "gamma", "nfe": [4], "gamma": [0, 1], "steps": "last"},
            ],
            "evaluation.protocols": {"tiny": "all"},
        }
    )
    protocols = {"tiny": Protocol.model_validate(tiny.PROTOCOL)}
    # 24 samples in batches of 16 are 32, for two seeds.
    assert sampled(made, protocols, "ctm", 6).sampling == 2 * 32 * (1 + 2)
    last = sampled(made, protocols, "ctm", 12)
    assert last.sampling == 2 * 32 * (1 + 2 + 4 + 4)
    assert (last.trajectory, last.trajectory_teacher) == (0, 0)
    # 64 images of each cell, and four noises along the two longest.
    assert last.previews == 64 * (1 + 2 + 4 + 4) + 4 * (4 + 4)
