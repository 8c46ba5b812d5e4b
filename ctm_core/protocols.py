"""Evaluation protocols: what has to be said beside a Fréchet distance for it to mean something.

A protocol is one YAML file under ``config/protocols``. Values of different protocols are never
compared.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ctm_core.config import read_yaml, validated
from ctm_core.errors import UserError

__all__ = ["Protocol", "ReferenceSplit", "load_protocol"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceSplit(_Section):
    """The real images that samples are compared with."""

    dataset: Name = Field(description="a name that `ctm data` knows")
    split: Name = Field("train", description="a split of that data set")


class Protocol(_Section):
    """How samples are turned into one number."""

    name: Name = Field(description="the file's name without .yaml")
    features: Name = Field(description="a name that ctm_core.features knows")
    input_size: int = Field(ge=1, description="side, in pixels, of what the network is fed")
    resize: Literal["none", "bilinear", "bicubic"] = Field(
        "none", description="antialiased interpolation from the images' side to input_size"
    )
    reference: ReferenceSplit
    samples: int = Field(ge=2, description="samples of each sampling seed")
    seeds: Literal["separate", "pooled"] = Field(
        "separate", description="one value a sampling seed, or one of all seeds' samples together"
    )
    rounding: Literal["truncate", "round"] = Field(
        "truncate",
        description="to uint8: floor(127.5 x + 127.5) as CTM, floor(127.5 x + 128) as EDM",
    )
    labels: Literal["uniform"] = "uniform"
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the feature network")

    @model_validator(mode="after")
    def _bf16_where_it_exists(self) -> Self:
        if self.precision == "bf16" and self.features.startswith("classifier_"):
            raise ValueError("precision bf16 is for large networks; classifiers run in fp32")
        return self

    def metric(self, n: int) -> str:
        """The metric's name for ``n`` scored samples: fd_<features>_<n>."""
        return f"fd_{self.features}_{n}"


def load_protocol(path: str | Path) -> Protocol:
    """Read and validate a protocol.

    Raises
    ------
    UserError
        If the file is missing, has an unknown key or a wrong value, or another name than the
        protocol in it.
    """
    protocol = validated(Protocol, read_yaml(path), path)
    if protocol.name != Path(path).stem:
        raise UserError(
            f"{path}: name: the protocol is named {protocol.name!r}, so its file must be "
            f"{protocol.name}.yaml"
        )
    return protocol
