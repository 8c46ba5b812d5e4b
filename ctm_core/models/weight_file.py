"""Exported weights: a network in one safetensors file that describes itself.

The metadata holds a JSON record with the architecture, the process's constants, the data set and
the training that made it, so :func:`load` needs no config beside the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ctm_core import config
from ctm_core.models import networks
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_metadata, save_tensors
from ctm_core.runtime.untrusted import parse_json, printable

if TYPE_CHECKING:
    from ctm_core.diffusion.trajectory import Trajectory

FORMAT = "ctm-weights-1"

#: Side of the largest images and most channels that any network here is for.
LARGEST = 1024


class Record(BaseModel):
    """What the record of every weight file says; there may be more in it."""

    model_config = ConfigDict(strict=True)

    experiment: str
    model: str
    objective: str
    seed: int
    step: int = Field(ge=0)
    train_hash: str
    dataset: str
    dataset_fingerprint: str | None
    network: config.Network
    diffusion: config.Diffusion
    resolution: int = Field(ge=1, le=LARGEST)
    channels: int = Field(ge=1, le=LARGEST)
    label_dim: int = Field(ge=0, le=10**6)
    class_names: list[str]
    time_s: bool
    inner: str = "edm"
    final_only: bool = False
    #: The one time that a model with final_only jumps to; None: sigma_min.
    end: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _a_name_for_each_class(self) -> Self:
        if self.label_dim not in (0, len(self.class_names)):
            raise ValueError(
                f"class_names: expected {self.label_dim} names but got {len(self.class_names)}"
            )
        return self


def build_model(
    *,
    network: config.Network,
    diffusion: config.Diffusion,
    inner: str = "edm",
    end: float | None = None,
    **sizes: Any,
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
        end=end,
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
    """The record of a weight file without its tensors.

    Raises UserError if it is none of ours, or says what no record can.
    """
    return _checked(read_metadata(path), path)[0]


def _checked(
    metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> tuple[dict[str, Any], Record]:
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
    required = {key for key, field in Record.model_fields.items() if field.is_required()}
    if not isinstance(record, dict) or (lacking := sorted(required - record.keys())):
        what = f"lacks {', '.join(lacking)}" if isinstance(record, dict) else "is not readable"
        raise UserError(f"{path} is damaged: its record {what}; make it again")
    try:
        return record, config.validated(Record, record, path)
    except UserError as error:
        raise UserError(f"{error}; the record of this file is damaged, make it again") from None


def load_weights(path: str | os.PathLike[str]) -> tuple[Trajectory, dict[str, Any]]:
    """Rebuild a model from its file alone, in eval mode, with its record.

    Raises UserError if the file is missing, damaged, none of ours, or its tensors do not fit.
    """
    tensors, metadata = load_tensors(path)
    record, checked = _checked(metadata, path)
    with torch.device("meta"):  # the file holds every tensor, so none is drawn or stored twice
        model = build_model(
            network=checked.network,
            diffusion=checked.diffusion,
            **{key: record[key] for key in ("resolution", "channels", "label_dim", "time_s")},
            inner=checked.inner,
            end=checked.diffusion.sigma_min
            if checked.final_only and checked.end is None
            else checked.end,
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
    problems += [f"holds the unknown {printable(name, 200)}" for name in given if name not in own]
    problems += [
        f"holds {name} of shape {given[name]}, not {own[name]}"
        for name in own
        if name in given and given[name] != own[name]
    ]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else None
