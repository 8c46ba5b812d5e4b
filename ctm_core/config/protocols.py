"""Evaluation protocols: what has to be said beside a value for it to mean something.

A protocol is one YAML file under ``config/protocols``. Values of different protocols are never
compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ctm_core.config import read_yaml, validated
from ctm_core.config._section import Name, OneOf, Section, duplicates
from ctm_core.config._traits import PACKAGE, literal, modules
from ctm_core.config.metric_registry import FID_SAMPLES, METRICS, TEACHER
from ctm_core.runtime.errors import UserError

#: What a protocol can ask for; ``fid`` is ``fd`` with the demand that it may be called so.
MetricKey = Annotated[str, OneOf(tuple(name for name, known in METRICS.items() if known.needs))]

#: Modules of the feature networks; those that need an external file say so in ``ASSETS``.
FEATURES = PACKAGE / "models" / "features"
#: Published statistics that papers' FIDs are relative to.
PAPER_REFERENCES = (
    "edm-reference-cifar10",
    "adm-reference-imagenet64",
    "edm-reference-imagenet64",
)


class ReferenceSplit(Section):
    """The real images that samples are compared with."""

    dataset: Name = Field(description="a name that `ctm data` or an experiment knows")
    split: Name = Field("train", description="a split of that data set")


class ReferenceFile(Section):
    """Statistics that somebody published, of images that need not be here."""

    asset: Name = Field(description="the file's name in config/assets.yaml")
    images: int = Field(ge=2, le=10**9, description="how many images the statistics are of")
    resolution: int = Field(ge=1, le=4096, description="side of those images in pixels")


def _kind(value: Any) -> str:
    named = isinstance(value, ReferenceFile) or (isinstance(value, dict) and "asset" in value)
    return "<file>" if named else "<split>"


#: What samples are compared with; the key ``asset`` tells the two apart.
Reference = Annotated[
    Annotated[ReferenceSplit, Tag("<split>")] | Annotated[ReferenceFile, Tag("<file>")],
    Discriminator(_kind),
]


class Neighbours(Section):
    """Which neighbour's distance is the radius of a point's ball."""

    precision_recall: int = Field(
        3, ge=1, le=10_000, description="as published (Kynkäänniemi et al., 2019)"
    )
    density_coverage: int = Field(
        5, ge=1, le=10_000, description="as published (Naeem et al., 2020)"
    )
    rows: int = Field(
        10_000, ge=2, le=10**6, description="features kept of either side, the first; also for kid"
    )


class Kid(Section):
    """How the kernel distance is averaged."""

    subsets: int = Field(
        0, ge=0, le=10**6, description="drawn without replacement; 0: all pairs of rows"
    )
    size: int = Field(1000, ge=2, le=10**6, description="rows of each side in a subset, at most")


class Trajectories(Section):
    """The teacher's flow that jumps are compared with."""

    noises: int = Field(24, ge=1, le=10**6, description="of each sampling seed: its first")
    points: int = Field(
        48, ge=2, le=10_000, description="of the grid of the teacher's fine solve by Heun"
    )


class HeldOut(Section):
    """What the distances of samples to training images are compared with."""

    held_out: Literal["test", "others"] = Field(
        "test",
        description="distances of the test split's images; others: of each training image to the "
        "others, where there is no test split",
    )
    images: int = Field(10_000, ge=2, le=10**9, description="held-out images at most")


class Protocol(Section):
    """How samples are turned into values."""

    name: Name = Field(description="the file's name without .yaml")
    features: Name = Field(description="a name that ctm_core.models.features knows")
    input_size: int = Field(
        ge=1, le=4096, description="side, in pixels, of what the network is fed"
    )
    resize: Literal["none", "bilinear", "bicubic", "inside", "clean"] = Field(
        "none",
        description="from the images' side to input_size: bilinear and bicubic are antialiased; "
        "clean is clean-fid's (PIL's bicubic, not quantised); inside: Inception's file enlarges "
        "to 299 by itself, and input_size is the images' side",
    )
    reference: Reference
    metrics: tuple[MetricKey, ...] = Field(
        ("fd",),
        min_length=1,
        max_length=100,
        description="fid: as fd, and refused unless it may be called FID",
    )
    samples: int = Field(ge=2, le=10**9, description="samples of each sampling seed")
    seeds: Literal["separate", "pooled"] = Field(
        "separate", description="one value a sampling seed, or one of all seeds' samples together"
    )
    rounding: Literal["truncate", "round"] = Field(
        "truncate",
        description="to uint8: floor(127.5 x + 127.5) as CTM, floor(127.5 x + 128) as EDM",
    )
    labels: Literal["uniform", "training"] = Field(
        "uniform", description="classes are drawn uniformly, or as often as in the training set"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the feature network")
    neighbours: Neighbours = Neighbours()
    kid: Kid = Kid()
    trajectory: Trajectories = Trajectories()
    memorisation: HeldOut = HeldOut()

    def _problems(self) -> Iterator[str]:
        yield from self._network_problems()
        for metric in duplicates(self.metrics):
            yield f"duplicate metric: {metric}"
        if {"fid", "fd"} <= set(self.metrics):
            yield "metrics names both fid and fd, which are one value; keep fid"
        yield from filter(None, (METRICS[metric].problem(self) for metric in self.metrics))

    def _network_problems(self) -> Iterator[str]:
        inception = self.features == "inception"
        if self.precision == "bf16" and (inception or self.features.startswith("classifier_")):
            kind = "Inception runs" if inception else "classifiers run"
            yield f"precision bf16 is for EfficientNet and DINOv2; {kind} in fp32"
        if inception and self.resize not in ("inside", "clean"):
            yield (
                f"inception sees 299 pixels: resize is inside (its file's own resizing) or clean "
                f"(clean-fid's), not {self.resize}"
            )
        if self.resize == "inside" and not inception:
            yield f"resize inside belongs to inception; {self.features} has none"
        if inception and self.resize == "clean" and self.input_size != 299:
            yield f"clean resizing for inception is to 299, not to {self.input_size}"
        side = self.reference.resolution if isinstance(self.reference, ReferenceFile) else None
        if self.resize == "inside" and side not in (None, self.input_size):
            yield (
                f"with resize inside, input_size ({self.input_size}) is the images' side, but the "
                f"reference is of {side}-pixel images"
            )
        if self.features.startswith("dinov2") and self.input_size % 14:
            yield f"dinov2 sees patches of 14 pixels, and {self.input_size} is no multiple"

    def too_little_for_fid(self, n: int) -> str | None:
        """Why a Fréchet distance of ``n`` samples is no FID here; None if it is one.

        FID means Inception of 2015-12-05 with its own resizing in fp32, the statistics that the
        paper's numbers are relative to, and at least 50,000 samples.
        """
        name = f"fd_{self.features}_{n}"
        published = isinstance(self.reference, ReferenceFile) and (
            self.reference.asset in PAPER_REFERENCES
        )
        if self.features != "inception" or self.resize != "inside" or not published:
            return (
                f"fid is of Inception (resize: inside) against {' or '.join(PAPER_REFERENCES)}; "
                f"ask for fd, which is named {name} here"
            )
        if n < FID_SAMPLES:
            return (
                f"too few samples for fid: {n:,}, and it takes {FID_SAMPLES:,}; draw more, or ask "
                f"for fd, which is named {name}"
            )
        return None

    @property
    def feature_assets(self) -> tuple[str, ...]:
        """Names of the external files that the feature network is read from."""
        files = [literal(FEATURES / f"{name}.py", "ASSETS") for name in modules(FEATURES)]
        return tuple(known[self.features] for known in files if self.features in known)

    def named_assets(self) -> dict[str, str]:
        """The names of external files that stand in the protocol, by their keys."""
        reference = self.reference
        return {"reference.asset": reference.asset} if isinstance(reference, ReferenceFile) else {}

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of all external files that making the reference reads."""
        return (*self.feature_assets, *self.named_assets().values())

    # -- what its metrics need ------------------------------------------------------------------

    def needing(self, part: str) -> list[str]:
        """The metrics that need a part of the state, see :attr:`Metric.needs`."""
        return [metric for metric in self.metrics if METRICS[metric].needs == part]

    @property
    def scored(self) -> list[str]:
        """The metrics of samples."""
        return [metric for metric in self.metrics if METRICS[metric].needs != TEACHER]

    @property
    def needs(self) -> frozenset[str]:
        """What those need: parts of a :class:`ctm_core.evaluation.metrics.state.State`."""
        return frozenset(METRICS[metric].needs for metric in self.scored)

    @property
    def outputs(self) -> list[str]:
        """What the feature network has to give per sample; see :mod:`ctm_core.models.features`."""
        return ["features", *sorted(self.needs & {"probabilities", "spatial"})]

    @property
    def keeps_features(self) -> bool:
        """Whether a metric needs the features themselves and not only their moments."""
        return "features" in self.needs

    @property
    def needs_teacher(self) -> bool:
        """Whether a metric compares with the teacher's flow."""
        return bool(self.needing(TEACHER))

    @property
    def needs_held_out_images(self) -> bool:
        """Whether the reference is made of a test split too."""
        return "nearest" in self.needs and self.memorisation.held_out == "test"

    @property
    def needs_training_images(self) -> bool:
        """Whether a metric, or the labels, need the images that the model has learned."""
        return "nearest" in self.needs or self.labels == "training"


def load_protocol(path: str | Path) -> Protocol:
    """Read a protocol; UserError if a key is wrong, or the file has another name than it."""
    protocol = validated(Protocol, read_yaml(path), path)
    if protocol.name != Path(path).stem:
        raise UserError(
            f"{path}: name: the protocol is named {protocol.name!r}, so its file must be "
            f"{protocol.name}.yaml"
        )
    return protocol
