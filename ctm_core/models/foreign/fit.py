"""Converted weights in an experiment: do they fit, and what of a teacher a student takes over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctm_core.config import Network, validated
from ctm_core.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from ctm_core.config import Experiment

#: Parts of a teacher's network that its student need not share: a student has no augmentation
#: map, and dropout matters only while a network is trained.
OWN = ("augment_dim", "dropout")


def is_imported(record: Mapping[str, Any]) -> bool:
    """Whether a weight file's record is that of a converted file."""
    return "imported" in record


def check_imported(
    experiment: Experiment, record: Mapping[str, Any], path: str | os.PathLike[str], model: str
) -> None:
    """Check that converted weights can stand for ``model`` in an experiment.

    Their training is unknown, so its hash and data cannot be compared; what can be is: teacher or
    student, network, sigma_data, and whether classes are given to it. Raises UserError naming the
    first key that differs.
    """
    if record["time_s"] != (model != "teacher"):
        is_, is_not = ("a CTM student", "a teacher")[:: 1 if record["time_s"] else -1]
        raise UserError(
            f"{path} was converted from {is_}, so it cannot be the {model} of "
            f"{experiment.experiment}; give the file of {is_not}"
        )
    sigma_data, classes = record["diffusion"]["sigma_data"], bool(record["label_dim"])
    given = _comparable(validated(Network, record["network"], path), sigma_data, classes)
    own = _comparable(experiment.network, experiment.diffusion.sigma_data, experiment.conditional)
    for key in own:
        if own[key] != given[key]:
            raise UserError(
                f"{path} does not fit the experiment {experiment.experiment}: its {key} is "
                f"{given[key]}, not {own[key]}; correct the config or convert another file"
            )


def _comparable(network: Network, sigma_data: float, conditional: bool) -> dict[str, Any]:
    """What teacher and student share, with an architecture's defaults written out."""
    values = {key: getattr(network, key) for key in Network.model_fields} | network.own_sizes
    values["attn_resolutions"] = sorted(network.attn_resolutions, reverse=True)
    shared = {f"network.{key}": value for key, value in values.items() if key not in OWN}
    return shared | {"diffusion.sigma_data": sigma_data, "conditional": conditional}


def copy_shared(teacher: nn.Module, student: nn.Module) -> None:
    """Give a student every tensor of its teacher that has its name and shape (CTM, section 5.1).

    What only the student has (layers of the target time s) keeps its random start; what only the
    teacher has (its augmentation map) is left out.
    """
    shapes = {name: value.shape for name, value in student.state_dict().items()}
    tensors = teacher.state_dict().items()
    shared = {name: value for name, value in tensors if value.shape == shapes.get(name)}
    # What is missing was named above: the layers that only the student has.
    student.load_state_dict(shared, strict=False)
