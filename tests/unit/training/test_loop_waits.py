"""The processor waits for the device once a step: to look at its loss terms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.pretended import DEVICE, pretended
from fixtures.tiny import Trained
from fixtures.waits import counted

from ctm_core.data.dataset import Dataset
from ctm_core.training import jobs
from ctm_core.training.loop import Trainer

STEPS = 2
AUGMENTED = {"teacher.augment": 0.12, "network.augment_dim": 9}
CONSISTENCY = {
    "models.ctm.objective": "cd",
    "evaluation.samplers.ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [1]}],
    "evaluation.protocols.tiny-pooled": None,
}
ADVERSARIAL = {
    "models.ctm.adversarial": {
        "discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8}
    },
    "models.ctm.training.micro_batch": 4,
}
WHOLE = {"models.ctm.training.micro_batch": 4, "models.ctm.lambda_scope": "global"}


class _Enough(Exception):
    """The steps have been counted."""


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("teacher", {}),
        ("teacher", AUGMENTED),
        ("ctm", {}),
        ("ctm", CONSISTENCY),
        ("ctm", ADVERSARIAL),
        ("ctm", WHOLE),
        ("ctm", {"models.ctm.objective": "ct"} | CONSISTENCY),
        ("ctm", {"models.ctm.objective": "ctm_scratch"}),
    ],
    ids=["teacher", "augmented", "ctm", "cd", "ctm_gan", "global", "ct", "scratch"],
)
def test_one_copy_a_step_and_nothing_else(
    digits: Dataset,
    teacher: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    changes: dict[str, Any],
) -> None:
    counts = []

    @contextlib.contextmanager
    def session() -> Iterator[torch.device]:
        yield torch.device(DEVICE)

    def train(self: Trainer, *_: Any) -> None:
        with contextlib.closing(self.batches):
            for _ in range(STEPS):
                with counted() as waits:
                    self._step()
                counts.append(dict(waits))
        raise _Enough

    monkeypatch.setattr(jobs.distributed, "session", session)
    monkeypatch.setattr(jobs.devices, "native_precision", lambda device: "fp32")
    monkeypatch.setattr(Trainer, "train", train)
    made = tiny.experiment(changes)
    given: dict[str, Any] = {"output": tmp_path / "out", "runs": tmp_path / "runs"}
    with pretended(), pytest.raises(_Enough):
        if model == "teacher":
            jobs.train_teacher(made, digits, **given)
        else:
            weights = teacher.weights if made.students["ctm"].uses_teacher else None
            jobs.train_student(made, model, digits, weights, seed=0, **given)
    assert counts == [{"to the host": 1}] * STEPS


def test_what_waits_is_counted() -> None:
    with pretended():
        x = torch.zeros(4, 3, device=DEVICE)
        with counted() as waits:
            float(x.sum())
            bool((x > 0).any())
            (x > 0).nonzero()
            x[x > 0]
            torch.ones(4).to(DEVICE)
            torch.ones(4).to(DEVICE, non_blocking=True)
            x.new_tensor([1.0, 2.0])
            x[0].cpu()
            x[torch.tensor([0, 1]).to(DEVICE, non_blocking=True)]
            torch.arange(3).nonzero()  # on the CPU itself
    found = {"to the host": 1, "blocking to the device": 2, "nonzero": 1, "mask": 1}
    scalars = waits.pop("_local_scalar_dense", 0) + waits.pop("is_nonzero", 0)
    assert waits == found and scalars == 2
