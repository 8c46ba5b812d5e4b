"""A training on another device than the CPU: nothing is left behind, nothing mixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures import tiny
from fixtures.pretended import DEVICE, pretended

from ctm_core.data.dataset import Dataset
from ctm_core.runtime import distributed
from ctm_core.training import jobs

STEPS = {"steps": 2, "batch_size": 4, "ema": [0.9]}
TEACHER = {
    "network.dropout": 0.0,
    "network.augment_dim": 9,
    "teacher.augment": 0.5,
    "teacher.training": STEPS,
    "models.ctm.training": STEPS,
}
STUDENTS = {
    "global": {
        "models.ctm.matching": "global",
        "models.ctm.lambda_scope": "global",
        "models.ctm.training": STEPS | {"micro_batch": 2},
    },
    "adversarial": tiny.ADVERSARIAL,
}


def test_whole_trainings_give_the_same_bytes(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[bytes]] = {}
    for device in ("cpu", DEVICE):
        runs = tmp_path / device

        @contextlib.contextmanager
        def session(device: str = device) -> Iterator[torch.device]:
            yield torch.device(device)

        monkeypatch.setattr(distributed, "session", session)
        with pretended():
            place = {"runs": runs / "runs", "output": runs / "teacher"}
            teacher = jobs.train_teacher(tiny.experiment(TEACHER), digits, **place)
            files = [teacher]
            for name, changes in STUDENTS.items():
                place = {"runs": runs / name, "output": runs / "out" / name}
                experiment = tiny.experiment(TEACHER | changes)
                files.append(
                    jobs.train_student(experiment, "ctm", digits, teacher, seed=0, **place)
                )
        made[device] = [file.read_bytes() for file in files]
    assert made["cpu"] == made[DEVICE]


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    with pretended():
        x, i = torch.ones(3, device=DEVICE), torch.tensor([0, 2])
        assert x.device.type == DEVICE and x[i].sum().item() == 2
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[i.to(DEVICE)]
