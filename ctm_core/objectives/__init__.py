"""Training objectives, one file each.

An objective turns a batch into gradients: its :meth:`Objective.backward` computes the loss terms,
accumulates their gradient in the student and returns the terms for the record. To add one, write a
module with a class of this shape and name it in :func:`build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from ctm_core import randomness

if TYPE_CHECKING:
    from ctm_core.config import Experiment
    from ctm_core.perceptual import Distance
    from ctm_core.trajectory import Trajectory

__all__ = ["Batch", "Objective", "build"]

Tensor = torch.Tensor


class Batch:
    """Consecutive samples of one optimisation step, and every random number they need.

    Parameters
    ----------
    images
        Shape (B, C, H, W), float, in [-1, 1].
    labels
        Shape (B,), int64, or None for unconditional models.
    seed, step
        The run's seed and the step; with ``start`` they are the whole state of the draws.
    start
        Index of the first sample within the global batch.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None, *, seed: int, step: int, start: int = 0
    ) -> None:
        self.images = images
        self.labels = labels
        self.seed = seed
        self.step = step
        self.start = start

    def __len__(self) -> int:
        return len(self.images)

    @property
    def indices(self) -> Tensor:
        """Sample indices within the global batch: shape (B,), int64."""
        return torch.arange(self.start, self.start + len(self))

    def normal(self, stream: str) -> Tensor:
        """Standard normal noise of the images' shape, dtype and device."""
        shape = tuple(self.images.shape[1:])
        noise = randomness.normal(self.seed, stream, self.step, self.start, len(self), shape)
        return noise.to(self.images)

    def uniform(self, stream: str) -> Tensor:
        """One uniform number a sample: shape (B,), float64, CPU."""
        return randomness.uniform(self.seed, stream, self.step, self.start, len(self))

    def shared_uniform(self, stream: str) -> Tensor:
        """One uniform number for the whole global batch: shape (), float64, CPU."""
        return randomness.uniform(self.seed, stream, self.step, 0, 1)[0]


class Objective(Protocol):
    """What the training loop asks of an objective."""

    #: Evaluations of each network so far, counted in images: teacher, student, target.
    evaluations: dict[str, int]

    def backward(self, batch: Batch, share: float) -> dict[str, float]:
        """Add ``share`` times the gradient of the batch's loss to the student's ``.grad``.

        Returns
        -------
        Loss terms and weights by name, as Python floats, for the record and the NaN guard.
        """
        ...


def build(
    name: str,
    *,
    experiment: Experiment,
    model: str,
    student: Trajectory,
    target: Trajectory,
    teacher: Trajectory,
    distance: Distance,
) -> Objective:
    """The student objective called ``name``.

    Raises
    ------
    UserError
        If there is no such objective.
    """
    from ctm_core.errors import UserError
    from ctm_core.objectives.ctm import CtmObjective

    objectives = {"ctm": CtmObjective}
    if name not in objectives:
        raise UserError(f"no objective {name!r}; there are: {', '.join(sorted(objectives))}")
    return objectives[name](
        section=experiment.student(model),
        diffusion=experiment.diffusion,
        student=student,
        target=target,
        teacher=teacher,
        distance=distance,
    )
