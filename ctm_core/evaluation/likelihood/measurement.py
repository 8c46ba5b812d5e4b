"""Bits per dimension of a model on a data set, by our protocol or the published script's."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm_core.data.dataset import Dataset, open_dataset, to_float
from ctm_core.diffusion import randomness, sampling
from ctm_core.evaluation.likelihood import ode, published_protocol
from ctm_core.evaluation.likelihood.bits import bits_per_dim, dequantise, prior_mismatch
from ctm_core.evaluation.likelihood.protocol import LikelihoodProtocol
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file, write_json
from ctm_core.runtime.progress import Progress
from ctm_core.runtime.provenance import code_version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """Bits per dimension of single images."""

    bits: Tensor  #: (N,) float64
    indices: Tensor  #: (N,) int64, which images of the data set
    evaluations: tuple[int, ...]  #: of the denoiser, for each batch
    mismatch: float  #: :func:`ctm_core.evaluation.likelihood.bits.prior_mismatch` of the images
    protocol: LikelihoodProtocol

    @property
    def mean(self) -> float:
        return float(self.bits.mean())

    @property
    def standard_error(self) -> float | None:
        """Over images, the noise of dequantisation and probes included; None for one image."""
        n = len(self.bits)
        return float(self.bits.std()) / math.sqrt(n) if n > 1 else None

    def __str__(self) -> str:
        error = self.standard_error
        spread = "" if error is None else f" ± {error:.4f}"
        return f"{self.mean:.4f}{spread} bits/dim"

    def to_json(self) -> dict[str, Any]:
        """Everything, and each image's value."""
        return {
            "bits_per_dim": self.mean,
            "standard_error": self.standard_error,
            "n": len(self.bits),
            "protocol": self.protocol.describe(),
            "seed": self.protocol.seed,
            "prior_mismatch_at_most": self.mismatch,
            "evaluations_by_batch": list(self.evaluations),
            "images": [
                {"index": index, "bits_per_dim": value}
                for index, value in zip(self.indices.tolist(), self.bits.tolist(), strict=True)
            ],
        }


def measure(
    generator: Generator,
    dataset: Dataset,
    *,
    count: int | None = None,
    protocol: LikelihoodProtocol | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Measurement:
    """Bits per dimension of images of a data set under a model.

    Which images, and every random number of an image, depend on the seed and the image's index
    alone. The images of a batch share the solver's steps, so another batch size moves a value
    within the solver's tolerance, and no further. (Under the published protocol dropout masks
    belong to the batch as well.) Class-conditional models are given the images' classes.

    Parameters
    ----------
    generator
        A model of a weight file, teacher or student, in eval mode.
    count
        Images, the first of a random order that the seed gives; default all.
    batch_size
        Default 64; 100 under the published protocol.
    progress
        Whether to show batches done.

    Raises
    ------
    UserError
        If data and model do not fit, there are fewer images, the model has no denoiser (it knows
        s = sigma_min alone), or it gives NaN.
    """
    protocol = protocol or LikelihoodProtocol()
    count = len(dataset) if count is None else count
    _check(generator, dataset, count)
    batch_size = batch_size or (published_protocol.BATCH_SIZE if protocol.published else 64)
    shuffled = randomness.permutation(protocol.seed, "likelihood images", 0, len(dataset))
    order = torch.from_numpy(shuffled)[:count]
    sigma_max = generator.record["diffusion"]["sigma_max"]
    evaluate = _published if protocol.published else _dequantised
    bar = Progress("likelihood", -(-count // batch_size)) if progress else None
    bits, evaluations, squares = [], [], 0.0
    for number, indices in enumerate(torch.split(order, batch_size)):
        batch = _Batch(generator, dataset, indices, number, protocol.seed)
        value, spent = evaluate(batch, protocol)
        bits.append(value)
        evaluations.append(spent)
        squares += prior_mismatch(to_float(batch.levels), sigma_max) * len(value)
        if bar is not None:
            bar.advance(len(value))
    if bar is not None:
        bar.close()
    return Measurement(torch.cat(bits), order, tuple(evaluations), squares / count, protocol)


def write_likelihood(
    weights: Path,
    data: Path,
    output: Path,
    *,
    count: int | None = None,
    protocol: LikelihoodProtocol | None = None,
    batch_size: int | None = None,
) -> Measurement:
    """:func:`measure` a weight file on a prepared data set and write the result as JSON."""
    generator, dataset = Generator.from_file(weights), open_dataset(data)
    measured = measure(
        generator, dataset, count=count, protocol=protocol, batch_size=batch_size, progress=True
    )
    if measured.protocol.published and dataset.split != "train":
        log.warning(
            "the published protocol reads the training images; these are of the split %s",
            dataset.split,
        )
    record = generator.record
    made_by = {
        name: record[name] for name in ("experiment", "model", "step", "seed", "train_hash")
    }
    write_json(
        output,
        measured.to_json()
        | {
            "model": made_by | {"weights_sha256": sha256_file(weights)},
            "dataset": {
                "name": dataset.name,
                "split": dataset.split,
                "fingerprint": dataset.fingerprint,
            },
            "code_version": code_version(),
        },
    )
    return measured


class _Batch:
    """Some images of a data set, and the model's denoiser with their classes bound."""

    def __init__(
        self, generator: Generator, dataset: Dataset, indices: Tensor, number: int, seed: int
    ) -> None:
        self.generator, self.indices, self.number, self.seed = generator, indices, number, seed
        self.levels, labels = dataset.batch(indices)
        self.parameter = next(generator.model.parameters())
        self.labels = labels.to(self.parameter.device) if generator.classes else None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.generator.model.denoise(x, t, self.labels)

    def place(self, x: Tensor) -> Tensor:
        """With the model's dtype, on its device."""
        return x.to(self.parameter)

    def drawn(self, law: Any, stream: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Random numbers (B, *shape), by default of the images' shape, by image index."""
        shape = self.generator.shape if shape is None else shape
        return torch.cat([law(self.seed, stream, 0, i, 1, shape) for i in self.indices.tolist()])

    def signs(self, count: int) -> Tensor:
        shape = self.generator.shape
        return self.place(ode.signs(self.seed, "probes", self.indices.tolist(), count, shape))

    def bits(self, nats: Tensor, *constant: float) -> Tensor:
        return bits_per_dim(nats, math.prod(self.generator.shape), *constant)


def _dequantised(batch: _Batch, protocol: LikelihoodProtocol) -> tuple[Tensor, int]:
    """Bits per dimension (B,) by our protocol, and the solver's evaluations."""
    model, diffusion = batch.generator.model, batch.generator.record["diffusion"]
    low = diffusion["sigma_min"]
    clean = dequantise(batch.levels, batch.drawn(randomness.uniform, "dequantise"))
    x, after = clean, torch.zeros(len(clean)).double()
    if protocol.residual == "reconstruction":
        noise = batch.drawn(randomness.normal, "likelihood noise")
        x = clean + low * noise
        start = batch.place(clean), batch.place(noise)
        after = published_protocol.residual(batch, *start, level=low, deviation=low, sampled=True)
    solved = ode.log_density(
        batch,
        batch.place(x),
        probes=batch.signs(protocol.probes) if protocol.probes else None,
        sigma_min=low,
        sigma_max=diffusion["sigma_max"],
        sigma_data=model.sigma_data,
        tolerance=protocol.tolerance,
    )
    return batch.bits(solved.log_density + after), solved.evaluations


def _published(batch: _Batch, protocol: LikelihoodProtocol) -> tuple[Tensor, int]:
    """The same by the published script's."""
    diffusion = sampling.grid_of(batch.generator.record["diffusion"])
    mirrored = batch.drawn(randomness.uniform, "flip", ()) < 0.5
    images = to_float(batch.levels)
    x = batch.place(torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images))
    noise, second = (
        batch.place(batch.drawn(randomness.normal, stream))
        for stream in ("likelihood noise", "residual noise")
    )
    probe = batch.signs(1)[0]
    with published_protocol.dropping_out(batch.generator.model, batch.seed, batch.number):
        solved = published_protocol.log_density(batch, x, noise, probe, **diffusion)
        own = second if protocol.reading == "own_noise" else noise
        after = published_protocol.published_residual(
            batch, x, own, reading=protocol.reading, **diffusion
        )
    nats = solved.log_density + after
    return batch.bits(nats, published_protocol.SCALE_BITS), solved.evaluations


def _check(generator: Generator, dataset: Dataset, count: int) -> None:
    shape = (dataset.channels, dataset.resolution, dataset.resolution)
    if shape != generator.shape:
        raise UserError(
            f"{dataset.path} holds images of shape {shape}, but the model's are of shape "
            f"{generator.shape}; give the data set that it learned"
        )
    if generator.classes and dataset.name != generator.record["dataset"]:
        raise UserError(
            f"the model knows the classes of {generator.record['dataset']}, and {dataset.path} "
            f"holds {dataset.name}; give the data set that it learned"
        )
    if generator.final_only:
        raise UserError(
            "this model knows only the jump to the end, so it has no denoiser and no "
            "likelihood; take a teacher, or a student trained with denoising score matching"
        )
    if not 1 <= count <= len(dataset):
        raise UserError(f"{dataset.path} holds {len(dataset)} images, not {count}; ask for fewer")
