"""Evaluation protocols: what has to be said beside a Fréchet distance for it to mean something.

A protocol is one YAML file under ``config/protocols``. Values of different protocols are never
compared.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ctm_core.config import read_yaml, validated
from ctm_core.errors import UserError

__all__ = ["Protocol", "Reference", "ReferenceFile", "ReferenceSplit", "load_protocol"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]

#: External files of the feature networks, by their names in config/assets.yaml.
FEATURE_FILES: dict[str, tuple[str, ...]] = {
    "efficientnet_lite0": ("efficientnet-lite0",),
    "inception": ("inception",),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceSplit(_Section):
    """The real images that samples are compared with."""

    dataset: Name = Field(description="a name that `ctm data` knows")
    split: Name = Field("train", description="a split of that data set")


class ReferenceFile(_Section):
    """Statistics that somebody published, of images that need not be here."""

    asset: Name = Field(description="the file's name in config/assets.yaml")


def _kind(value: Any) -> str:
    named = isinstance(value, ReferenceFile) or (isinstance(value, dict) and "asset" in value)
    return "<file>" if named else "<split>"


#: What samples are compared with; the key ``asset`` tells the two apart.
Reference = Annotated[
    Annotated[ReferenceSplit, Tag("<split>")] | Annotated[ReferenceFile, Tag("<file>")],
    Discriminator(_kind),
]


class Protocol(_Section):
    """How samples are turned into one number."""

    name: Name = Field(description="the file's name without .yaml")
    features: Name = Field(description="a name that ctm_core.features knows")
    input_size: int = Field(ge=1, description="side, in pixels, of what the network is fed")
    resize: Literal["none", "bilinear", "bicubic"] = Field(
        "none", description="antialiased interpolation from the images' side to input_size"
    )
    reference: Reference
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

    @property
    def feature_assets(self) -> tuple[str, ...]:
        """Names of the external files that the feature network is read from."""
        return FEATURE_FILES.get(self.features, ())

    def named_assets(self) -> dict[str, str]:
        """The names of external files that stand in the protocol, by their keys."""
        reference = self.reference
        return {"reference.asset": reference.asset} if isinstance(reference, ReferenceFile) else {}

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of all external files that making the reference reads."""
        return (*self.feature_assets, *self.named_assets().values())

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
