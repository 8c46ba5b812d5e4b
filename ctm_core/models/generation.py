"""Samples from a weight file, each a function of the seed and its own index alone.

Sample i of a seed has the same latent, label and injected noises for any batch size, number of
samples and number of processes. All batches have one size, the last one padded, so at equal batch
size its pixels are bit-identical too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ctm_core.config import Cell, Network
from ctm_core.config.optimization import suits_channels_last
from ctm_core.config.sampler_traits import JUMP_SAMPLER, ODE_SAMPLER, sampler_traits
from ctm_core.diffusion import randomness, sampling
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.networks.layers import channels_last
from ctm_core.models.weight_file import load_weights
from ctm_core.runtime import cuda
from ctm_core.runtime.errors import UserError

Tensor = torch.Tensor


class Generator:
    """Draws images from a model in eval mode by the rules of its weight file's ``record``.

    Under ``precision`` ``bf16`` the network samples under autocast; the state between its
    evaluations keeps its dtype.
    """

    def __init__(self, model: Trajectory, record: dict[str, Any], precision: str = "fp32") -> None:
        self.model = model
        self.record = record
        self.precision = precision
        side = int(record["resolution"])
        self.shape = (int(record["channels"]), side, side)
        self.classes = int(record["label_dim"])

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], precision: str = "fp32") -> Generator:
        """Load a weight file, into the memory layout that suits it.

        Raises UserError if it is missing or corrupt.
        """
        model, record = load_weights(path)
        device = cuda.device()
        cuda.check_precision(precision, device)
        width = Network.model_validate(record["network"]).model_channels
        if suits_channels_last(width, int(record["resolution"]), precision):
            channels_last(model)
        return cls(model.to(device), record, precision)

    @property
    def has_jumps(self) -> bool:
        """Whether the model has a G."""
        return self.model.has_jumps

    @property
    def final_only(self) -> bool:
        """Whether it jumps to one time alone, so that gamma is 1."""
        return self.model.end is not None

    def cell(
        self,
        sampler: str | None,
        nfe: int | None,
        gamma: float | None,
        times: Sequence[float] = (),
    ) -> Cell:
        """What to sample, with defaults for what is None.

        By default a student is sampled with ``gamma`` at NFE 1, or as ``times`` need, and a
        teacher with ``heun`` at NFE 35; γ is 0, or 1 where nothing else is possible.
        """
        default, evaluations = (
            (JUMP_SAMPLER, 1 + len(times)) if self.has_jumps else (ODE_SAMPLER, 35)
        )
        sampler = sampler or default
        if gamma is None and sampler_traits(sampler).gamma:
            gamma = float(self.final_only)
        return Cell(sampler, evaluations if nfe is None else nfe, gamma, tuple(times))

    def class_index(self, label: str) -> int:
        """The index of a class given by name or index; raises UserError if there is none."""
        if not self.classes:
            raise UserError("--class needs a class-conditional model; this one is unconditional")
        names = [str(name) for name in self.record["class_names"]]
        if label in names:
            return names.index(label)
        if label.isdecimal() and int(label) < self.classes:
            return int(label)
        raise UserError(f"there is no class {label!r}; classes are {', '.join(names)}")

    def labels(self, seed: int, start: int, count: int, label: int | None = None) -> Tensor | None:
        """Classes of samples ``start …``: uniform, or all ``label``; None if unconditional."""
        if not self.classes:
            return None
        if label is not None:
            return torch.full((count,), label)
        return randomness.integers(seed, "labels", 0, start, count, self.classes)

    def batches(
        self,
        count: int,
        *,
        sampler: str,
        nfe: int,
        gamma: float | None,
        times: Sequence[float] = (),
        seed: int,
        batch_size: int = 256,
        rounding: str = "truncate",
        label: int | None = None,
        labels: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield uint8 images (at most ``batch_size``, C, H, W) until ``count`` are made.

        ``sampler``, ``nfe``, ``gamma`` and ``times`` are those of
        :func:`ctm_core.diffusion.sampling.sample`. ``label`` is one class for all samples,
        ``labels`` are explicit classes, int64 (count,), instead of drawn ones. Raises UserError if
        the combination cannot be sampled, the labels do not fit, or the model gives NaN.
        """
        self._check_labels(count, label, labels)
        cell = Cell(sampler, nfe, gamma, tuple(times))
        for start in range(0, count, batch_size):
            if labels is None:
                y = self.labels(seed, start, batch_size, label)
            else:
                y = labels[start : start + batch_size]
                y = torch.cat([y, y.new_zeros(batch_size - len(y))])
            images = self.draw(start, batch_size, cell, seed=seed, labels=y)
            if not bool(torch.isfinite(images).all()):
                raise UserError(
                    f"the model {self.record['model']} (step {self.record['step']}) gives NaN or "
                    f"infinity by {sampler} at nfe {nfe}; its weights are unusable, train it again"
                )
            yield sampling.to_uint8(images[: count - start].clamp(-1, 1).cpu(), rounding)

    def draw(
        self,
        start: int,
        count: int,
        cell: Cell,
        *,
        seed: int,
        labels: Tensor | None,
        model: sampling.Model | None = None,
    ) -> Tensor:
        """Samples ``start …`` of a seed, unclamped: float (count, C, H, W) on the model's device.

        ``labels`` are int64 (count,), or None for an unconditional model; ``model`` is called in
        place of the generator's own, e.g. one that records its calls.
        """
        device = next(self.model.parameters()).device
        rounded = self.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=rounded):
            return sampling.sample(
                self.model if model is None else model,
                **cell._asdict(),
                latents=randomness.normal(seed, "latents", 0, start, count, self.shape).to(device),
                noise=lambda k: randomness.normal(seed, "inject", k, start, count, self.shape),
                labels=None if labels is None else labels.to(device),
                **sampling.grid_of(self.record["diffusion"]),
                clamp=False,
                end=self.model.end,
            )

    def _check_labels(self, count: int, label: int | None, labels: Tensor | None) -> None:
        if count < 1:
            raise UserError(f"expected at least one sample, but got {count}")
        given = [] if label is None else [label]
        if labels is not None:
            if labels.shape != (count,) or labels.dtype != torch.int64:
                raise UserError(
                    f"expected int64 labels of shape ({count},), one per sample, but got "
                    f"{labels.dtype} of shape {tuple(labels.shape)}"
                )
            given += [int(labels.min()), int(labels.max())]
        if given and not self.classes:
            raise UserError("labels were given to an unconditional model, which takes none")
        for number in given:
            if not 0 <= number < self.classes:
                raise UserError(f"there is no class {number}; classes are 0 to {self.classes - 1}")

    def images(self, count: int, *, progress: bool = False, **options: Any) -> Tensor:
        """All ``count`` images at once; options as :meth:`batches`."""
        from ctm_core.runtime.progress import Progress

        batch_size = int(options.get("batch_size", 256))
        bar = Progress("sampling", -(-count // batch_size)) if progress else None
        made = []
        for batch in self.batches(count, **options):
            made.append(batch)
            if bar is not None:
                bar.advance(len(batch))
        if bar is not None:
            bar.close()
        return torch.cat(made)

    def describe_samples(self) -> dict[str, Any]:
        """The record of the model that is written beside an array of its samples."""
        keys = ("experiment", "model", "objective", "step", "dataset", "train_hash")
        return {
            "kind": "samples",
            **{key: self.record[key] for key in keys},
            "train_seed": self.record["seed"],
            "params_m": sum(p.numel() for p in self.model.parameters()) / 1e6,
            "rounding": "truncate",
            **({} if self.precision == "fp32" else {"sampling_precision": self.precision}),
        }

    def describe(
        self, sampler: str, nfe: int, gamma: float | None, times: Sequence[float] = ()
    ) -> str:
        """The noise levels that a sampler visits, as text, e.g. ``80 → 2.515, 2.515 → 0.002``."""
        grid = sampling.grid_of(self.record["diffusion"])
        jumps = sampling.plan(sampler, nfe, gamma, times, **grid, end=self.model.end)
        t, s, noises = (values.tolist() for values in jumps)
        if not sampler_traits(sampler).jumps:
            return " → ".join(f"{time:.4g}" for time in [*t, s[-1]])
        return ", ".join(
            f"{start:.4g} → {end:.4g}" + (f" + noise {noise:.4g}" if noise else "")
            for start, end, noise in zip(t, s, noises, strict=True)
        )
