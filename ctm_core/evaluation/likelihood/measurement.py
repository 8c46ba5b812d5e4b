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
from ctm_core.diffusion.trajectory import Trajectory
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
        levels, labels = dataset.batch(indices)
        denoiser = _Bound(generator.model, labels if generator.classes else None)
        value, spent = evaluate(generator, denoiser, levels, indices.tolist(), number, protocol)
        bits.append(value)
        evaluations.append(spent)
        squares += prior_mismatch(to_float(levels), sigma_max) * len(value)
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


def _dequantised(
    generator: Generator,
    denoiser: _Bound,
    levels: Tensor,
    indices: list[int],
    number: int,
    protocol: LikelihoodProtocol,
) -> tuple[Tensor, int]:
    shape, seed = generator.shape, protocol.seed
    low, high = (generator.record["diffusion"][name] for name in ("sigma_min", "sigma_max"))
    clean = dequantise(levels, _drawn(randomness.uniform, seed, "dequantise", indices, shape))
    x, after = clean, torch.zeros(len(indices)).double()
    if protocol.residual == "reconstruction":
        noise = _drawn(randomness.normal, seed, "likelihood noise", indices, shape)
        x = clean + low * noise
        after = published_protocol.residual(
            denoiser,
            denoiser.place(clean),
            denoiser.place(noise),
            level=low,
            deviation=low,
            sampled=True,
        )
    probes = None
    if protocol.probes:
        probes = denoiser.place(ode.signs(seed, "probes", indices, protocol.probes, shape))
    solved = ode.log_density(
        denoiser,
        denoiser.place(x),
        probes=probes,
        sigma_min=low,
        sigma_max=high,
        sigma_data=generator.model.sigma_data,
        tolerance=protocol.tolerance,
    )
    return bits_per_dim(solved.log_density + after, math.prod(shape)), solved.evaluations


def _published(
    generator: Generator,
    denoiser: _Bound,
    levels: Tensor,
    indices: list[int],
    number: int,
    protocol: LikelihoodProtocol,
) -> tuple[Tensor, int]:
    shape, seed = generator.shape, protocol.seed
    diffusion = sampling.grid_of(generator.record["diffusion"])
    mirrored = _drawn(randomness.uniform, seed, "flip", indices, ()) < 0.5
    images = to_float(levels)
    x = denoiser.place(torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images))
    noise, second = (
        denoiser.place(_drawn(randomness.normal, seed, stream, indices, shape))
        for stream in ("likelihood noise", "residual noise")
    )
    probe = denoiser.place(ode.signs(seed, "probes", indices, 1, shape)[0])
    with published_protocol.dropping_out(generator.model, seed, number):
        solved = published_protocol.log_density(denoiser, x, noise, probe, **diffusion)
        after = published_protocol.published_residual(
            denoiser,
            x,
            second if protocol.reading == "own_noise" else noise,
            reading=protocol.reading,
            **diffusion,
        )
    nats = solved.log_density + after
    return bits_per_dim(nats, math.prod(shape), published_protocol.SCALE_BITS), solved.evaluations


class _Bound:
    """The model's denoiser with labels bound, and its dtype and device."""

    def __init__(self, model: Trajectory, labels: Tensor | None) -> None:
        self.model = model
        self.parameter = next(model.parameters())
        self.labels = None if labels is None else labels.to(self.parameter.device)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model.denoise(x, t, self.labels)

    def place(self, x: Tensor) -> Tensor:
        return x.to(self.parameter)


def _drawn(law: Any, seed: int, stream: str, indices: list[int], shape: tuple[int, ...]) -> Tensor:
    return torch.cat([law(seed, stream, 0, i, 1, shape) for i in indices])


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
            "this model knows only the target time sigma_min, so it has no denoiser and no "
            "likelihood; take a teacher, or a student trained with denoising score matching"
        )
    if not 1 <= count <= len(dataset):
        raise UserError(f"{dataset.path} holds {len(dataset)} images, not {count}; ask for fewer")
