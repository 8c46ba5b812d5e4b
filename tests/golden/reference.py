"""Reading golden files, rebuilding their networks and comparing with the project's tolerances."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ctm_core.networks import DDPMpp
from ctm_core.trajectory import Trajectory

DEFAULT_FOLDER = Path(__file__).parent / "data"

#: Every file of a golden set.
CASES = (
    "ctm_sampling.safetensors",
    "ctm_student_cifar.safetensors",
    "ctm_student_sony.safetensors",
    "ctm_training.safetensors",
    "discriminator.json",
    "edm_adm.safetensors",
    "edm_augment.safetensors",
    "edm_blocks.safetensors",
    "edm_ddpmpp.safetensors",
    "edm_ncsnpp.safetensors",
    "edm_pickle_expected.safetensors",
    "edm_sampler.safetensors",
    "grids_and_draws.safetensors",
)

#: Relative errors allowed, per sample.
FLOAT32_CALL = 1e-5  # one network call
FLOAT32_SOLVE = 1e-4  # several calls in a row, gradients, weights after training steps
FLOAT64_STORED32 = 1e-6  # a float64 run against a value stored as float32
FLOAT64_STORED64 = 1e-9

#: Files read so far in this test session, for the report of what no test looks at.
loaded: set[str] = set()


def folder() -> Path:
    """The golden set: the folder that CTM_GOLDEN names, else the committed copy of set A."""
    return Path(os.environ.get("CTM_GOLDEN") or DEFAULT_FOLDER)


@dataclass(frozen=True)
class Case:
    """One golden file: tensors by name and metadata, JSON where it parses."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def input(self, key: str, dtype: torch.dtype) -> Tensor:
        """Tensor ``in/<key>`` in the dtype of the run."""
        return self[f"in/{key}"].to(dtype)

    def weights(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors below ``prefix/``, without it; upcast from float16, in which they are exact."""
        start = f"{prefix}/"
        return {
            key.removeprefix(start): value.to(dtype)
            for key, value in self.tensors.items()
            if key.startswith(start)
        }

    def expected(self, key: str, precision: torch.dtype) -> Tensor:
        """``out32/<key>`` or ``out64/<key>`` by the run's precision; out64 if it stands alone."""
        own = f"out{32 if precision == torch.float32 else 64}/{key}"
        return self[own if own in self else f"out64/{key}"]

    def labels(self, dtype: torch.dtype) -> Tensor | None:
        """Class labels of the inputs: int64 (B,), or one-hot (B, label_dim) in ``dtype``."""
        for key, labels in self.tensors.items():
            if re.fullmatch(r"in/(y|y_.*|.*label.*)", key) and "augment" not in key:
                return labels.to(dtype) if labels.ndim == 2 else labels.long()
        return None


def load(name: str) -> Case:
    """Read ``<name>.safetensors``; a missing file or folder is a failure, never a skip."""
    path = folder() / f"{name}.safetensors"
    assert path.is_file(), f"golden file {path} is missing (CTM_GOLDEN names the folder)"
    with safetensors.safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = dict(file.metadata() or {})
    loaded.add(path.name)
    return Case(name, tensors, {key: _parse(value) for key, value in meta.items()})


def build(
    kwargs: dict[str, Any],
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    *,
    time_s: bool,
    sigma_data: float = 0.5,
) -> Trajectory:
    """The DDPM++ that a file's constructor arguments describe, strictly loaded; in train mode.

    All goldens were run without dropout, so the mode makes no difference.
    """
    assert kwargs["model_type"] == "SongUNet", kwargs["model_type"]
    assert kwargs.get("dropout", 0) == 0
    for key, only in (
        ("embedding_type", "positional"),
        ("encoder_type", "standard"),
        ("decoder_type", "standard"),
        ("channel_mult_noise", 1),
    ):
        assert kwargs.get(key, only) == only, f"{key} = {kwargs[key]} is not DDPM++"
    network = DDPMpp(
        resolution=kwargs["img_resolution"],
        channels=kwargs["img_channels"],
        label_dim=kwargs["label_dim"],
        augment_dim=kwargs.get("augment_dim", 0),
        time_s=time_s,
        resample_filter=kwargs.get("resample_filter", (1, 1)),
        **{k: kwargs[k] for k in ("model_channels", "channel_mult", "num_blocks")},
        attn_resolutions=kwargs["attn_resolutions"],
    )
    model = Trajectory(network, sigma_data).to(dtype)
    model.load_state_dict(weights, strict=True)
    return model


def student(case: Case, dtype: torch.dtype, prefix: str = "net") -> Trajectory:
    """A CTM network: ``net`` of ctm_student_cifar, ``student`` or ``ema`` of ctm_training."""
    kwargs = case.meta["kwargs" if "kwargs" in case.meta else "student_kwargs"]
    sigma_data = float(case.meta.get("sigma_data", 0.5))
    return build(kwargs, case.weights(prefix, dtype), dtype, time_s=True, sigma_data=sigma_data)


def teacher(case: Case, dtype: torch.dtype) -> Trajectory:
    """The teacher of ctm_training: one wrapper more in its names than a student has."""
    weights = {
        key.removeprefix("model."): value for key, value in case.weights("teacher", dtype).items()
    }
    return build(case.meta["teacher_kwargs"], weights, dtype, time_s=False)


def error(ours: Tensor, golden: Tensor, *, per_sample: bool = True) -> float:
    """The worst relative error ‖a − b‖ / max(‖b‖, 1e-8 √n) over samples (the first axis).

    A scalar, or any tensor with ``per_sample`` False (weights, gradients), is one sample.
    """
    assert ours.shape == golden.shape, f"shape {tuple(ours.shape)}, golden {tuple(golden.shape)}"
    rows = len(golden) if per_sample and golden.ndim else 1
    a, b = (v.detach().double().reshape(rows, -1) for v in (ours, golden))
    floor = 1e-8 * b.shape[1] ** 0.5
    # A norm of NaN or infinity must not pass through a comparison unnoticed.
    worst = ((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=floor)).max()
    return float(worst) if torch.isfinite(a).all() else float("inf")


def compare(
    name: str,
    ours: Tensor,
    golden: Tensor,
    precision: torch.dtype,
    *,
    solve: bool = False,
    per_sample: bool = True,
) -> float:
    """Assert that ours agrees with golden, and return the error.

    Parameters
    ----------
    name
        For the message.
    precision
        The dtype our networks ran in; with the stored dtype it decides the tolerance.
    solve
        Whether the value went through several network calls (looser in float32 only).
    per_sample
        See :func:`error`.
    """
    if precision == torch.float32:
        tolerance = FLOAT32_SOLVE if solve else FLOAT32_CALL
    else:
        tolerance = FLOAT64_STORED64 if golden.dtype == torch.float64 else FLOAT64_STORED32
    worst = error(ours, golden, per_sample=per_sample)
    assert worst <= tolerance, f"{name}: relative error {worst:.3g} exceeds {tolerance:g}"
    return worst


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
