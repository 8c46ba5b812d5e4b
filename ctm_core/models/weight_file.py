"""Exported weights: a network in one safetensors file that describes itself.

The metadata holds a JSON record with the architecture, the process's constants, the data set and
the training that made it, so :func:`load` needs no config beside the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ctm_core import config
from ctm_core.models import networks
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_metadata, save_tensors
from ctm_core.runtime.untrusted import parse_json

if TYPE_CHECKING:
    from ctm_core.diffusion.trajectory import Trajectory

FORMAT = "ctm-weights-1"

#: What the record of every weight file says.
RECORD = {
    "experiment", "model", "objective", "seed", "step", "train_hash", "dataset",
    "dataset_fingerprint", "network", "diffusion", "resolution", "channels", "label_dim",
    "class_names", "time_s",
}  # fmt: skip


def build_model(
    *, network: config.Network, diffusion: config.Diffusion, inner: str = "edm", **sizes: Any
) -> Trajectory:
    """A freshly initialised model; torch's global generator decides the weights.

    ``sizes`` are resolution, channels, label_dim and time_s, as :func:`.networks.build` has them.
    """
    from ctm_core.diffusion.trajectory import Trajectory

    return Trajectory(
        networks.build(network, **sizes),
        sigma_data=diffusion.sigma_data,
        inner=inner,
        sigma_min=diffusion.sigma_min,
    )


def export(
    path: str | os.PathLike[str],
    model: Trajectory,
    record: Mapping[str, Any],
    *,
    card: str | None = None,
) -> None:
    """Write a model's weights with its record; the same model gives the same bytes.

    ``card`` is a text for people (a model card), which the file carries beside its record.
    """
    metadata = {"format": FORMAT, "record": json.dumps(record, sort_keys=True)}
    if card is not None:
        metadata["card"] = card
    save_tensors(path, model.state_dict(), metadata)


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a weight file without its tensors; raises UserError if it is none of ours."""
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a weight file of this project; give a student.safetensors or "
            "teacher.safetensors that `ctm train` or `ctm teacher` wrote, or what `ctm convert` "
            "made of another project's file"
        )
    try:
        record = parse_json(metadata.get("record", ""), path)
    except UserError:
        record = None
    if not isinstance(record, dict) or (lacking := sorted(RECORD - record.keys())):
        what = f"lacks {', '.join(lacking)}" if isinstance(record, dict) else "is not readable"
        raise UserError(f"{path} is damaged: its record {what}; make it again")
    return record


def load_weights(path: str | os.PathLike[str]) -> tuple[Trajectory, dict[str, Any]]:
    """Rebuild a model from its file alone, in eval mode, with its record.

    Raises UserError if the file is missing, damaged, none of ours, or its tensors do not fit.
    """
    record = read_record(path)
    tensors, _ = load_tensors(path)
    with torch.device("meta"):  # the file holds every tensor, so none is drawn or stored twice
        model = build_model(
            network=config.validated(config.Network, record["network"], path),
            diffusion=config.validated(config.Diffusion, record["diffusion"], path),
            **{key: record[key] for key in ("resolution", "channels", "label_dim", "time_s")},
            inner=record.get("inner", "edm"),
        )
    load_state(model, tensors, path)
    return model.eval().requires_grad_(False), record


def load_state(
    model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> None:
    """Load tensors strictly; raises UserError naming the first that does not fit.

    A model on the meta device gets memory here, so nothing of it aliases the file's.
    """
    own = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if problem := misfit(shapes, given):
        raise UserError(f"{path} does not fit its network: it {problem}")
    for name, value in own.items():
        if tensors[name].dtype != value.dtype:
            raise UserError(
                f"{path} does not fit its network: expected {name} of type {value.dtype}, but got "
                f"{tensors[name].dtype}"
            )
    meta = any(tensor.is_meta for tensor in own.values())
    if meta:
        tensors = {name: tensors[name].clone() for name in own}
    model.load_state_dict(dict(tensors), assign=meta)


def misfit(own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first name or shape of ``given`` that is not the network's own; None if all are."""
    problems = [f"lacks {name}" for name in own if name not in given]
    problems += [f"holds the unknown {name}" for name in given if name not in own]
    problems += [
        f"holds {name} of shape {given[name]}, not {own[name]}"
        for name in own
        if name in given and given[name] != own[name]
    ]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else None
