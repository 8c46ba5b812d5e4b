"""A trained model for use in notebooks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from ctm_core.models import zoo
from ctm_core.models.generation import Generator

Tensor = torch.Tensor


class Model:
    """A loaded teacher or student.

    ``record`` says what it is: experiment, data set, architecture, training step and hashes.
    Images are float (B, C, H, W) in about [-1, 1]; times are numbers or (B,) tensors between
    sigma_min and sigma_max; ``y`` is int64 (B,), or None for unconditional models.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.record: dict[str, Any] = generator.record

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Model:
        """Load a weight file, or ``zoo:NAME``.

        Raises UserError if it is missing, corrupt or of another kind.
        """
        return cls(Generator.from_file(zoo.locate(path)))

    @torch.no_grad()
    def G(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, y: Tensor | None = None
    ) -> Tensor:
        """Jump along the probability-flow ODE from time t to time s <= t (paper section 3.1)."""
        return self._generator.model.G(x, t, s, y)

    @torch.no_grad()
    def denoise(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        """The denoiser E[x_0 | x_t = x]; the score is (denoise(x, t) - x) / t^2."""
        return self._generator.model.denoise(x, t, y)

    def sample(
        self,
        n: int,
        nfe: int | None = None,
        gamma: float | None = None,
        seed: int = 0,
        labels: Tensor | None = None,
        *,
        sampler: str | None = None,
        times: Sequence[float] = (),
        batch_size: int = 256,
    ) -> Tensor:
        """Draw ``n`` images as uint8 (n, C, H, W).

        Parameters
        ----------
        nfe
            Network evaluations per image; default 1 for a student, 35 for a teacher.
        gamma
            0 deterministic, 1 consistency sampling; default 0, or 1 for models that only jump to
            the end. Teachers have none.
        seed
            Sample i depends on the seed and i alone.
        labels
            Classes, int64 (n,); default uniform. Unconditional models take none.
        sampler
            Name of a file of :mod:`ctm_core.diffusion.samplers`; default ``gamma``, or ``heun``
            for a teacher.
        times
            Noise levels between the jumps, from high to low, in place of the grid's; ``nfe`` is
            then one more than they are.

        Raises
        ------
        UserError
            If the model cannot be sampled with this sampler, nfe, gamma and times, or labels do
            not fit.
        """
        cell = self._generator.cell(sampler, nfe, gamma, times)
        return self._generator.images(
            n, **cell._asdict(), seed=seed, labels=labels, batch_size=batch_size
        )
