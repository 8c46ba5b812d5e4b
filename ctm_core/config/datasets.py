"""What is known of each data set before it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ctm_core.config._section import Later, Name, Positive, Section, Text
from ctm_core.config._traits import PACKAGE, Registry


class DatasetTraits(Section):
    """``TRAITS`` of a module of ``ctm_core.data.readers``; see there."""

    splits: tuple[Name, ...] = Field(min_length=1, description="the training split first")
    flip: bool = Field(description="a mirrored image is an image of the same set")
    shape: tuple[Positive, Positive, Positive] | None = Field(
        None, description="(C, H, W) of every image; null: only the source tells"
    )
    counts: dict[Name, Positive] = Field(
        default_factory=dict, description="images per split; empty: only the source tells"
    )
    classes: Positive | None = Field(None, description="null: only the source tells")
    class_names: tuple[str, ...] = Field(
        (), description="in the order of the labels; empty: the source decides them"
    )
    source: Literal["none", "optional", "required"] = Field(
        "optional", description="whether the user names a folder, file or URL"
    )
    assets: tuple[Name, ...] = Field(
        (), description="external files that are read without a source"
    )
    classifier: dict[Literal["steps", "batch_size", "learning_rate"], Any] = Field(
        default_factory=dict, description="training of its small classifier, where not default"
    )
    own: bool = Field(False, description="of the user's own images, under a name of the user's")

    def source_problem(self, source: str | None) -> str | None:
        """What is wrong with a source, or with there being none; None if nothing is."""
        if self.source == "none" and source is not None:
            return f"takes no source (given: {source})"
        if self.source == "required" and source is None:
            return "needs a source: the folder, file or URL of its original files"
        return None


READERS = Registry(
    PACKAGE / "data" / "readers",
    DatasetTraits,
    "unknown dataset {name!r}; known are {known}",
    dash="-",
)
names, traits = READERS.names, READERS.traits

#: What precedes the name of an entry of config/assets.yaml as a source.
ASSET = "asset:"


class Dataset(Section):
    """Which images are learned."""

    reader: Later[Literal["images"] | None] = Field(
        None, description="reads your own images; the other keys are its settings"
    )
    name: Name = Field(description="a name that `ctm data` knows, or with a reader your own")
    source: Text | None = Field(
        None, description="folder, file or URL, for data sets that take one"
    )
    resolution: Later[Annotated[int, Field(ge=4, le=1024)] | None] = Field(
        None, description="side of the prepared images in pixels"
    )
    channels: Later[Literal[1, 3]] = Field(3, description="1 for grey, 3 for RGB")
    crop: Later[Literal["centre", "none"]] = Field(
        "centre", description="the central square, or refuse what is not square or differs in size"
    )
    filter: Later[Literal["box-bicubic", "lanczos", "area"]] = Field(
        "box-bicubic", description="how images are resized; the first is ImageNet 64x64's recipe"
    )
    classes: Later[Literal["names", "none"]] = Field(
        "names", description="from folders or labels, or a single class"
    )
    test_fraction: Later[Annotated[float, Field(ge=0, le=0.5)]] = Field(
        0.0, description="held out as the split test, chosen by a hash of each image's content"
    )
    flip: Later[bool] = Field(False, description="a mirrored image is an image of the same set")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        return READERS.known(name) if info.data.get("reader") is None else name

    def _problems(self) -> Iterator[str]:
        given = sorted(self.model_fields_set - {"name", "source", "reader"})
        if self.reader is None and given:
            yield f"{given[0]} is a setting of a reader; add `reader: images` or leave it out"
        if self.reader is None and self.traits.own:
            yield f"{self.name} is a reader: write `reader: {self.name}` beside a name of your own"
        if self.reader is not None and self.name in names():
            yield f"{self.name} is another data set's name; choose a name of your own"
        if self.reader is not None and self.resolution is None:
            yield f"{self.name} needs a resolution, the side of its prepared images in pixels"
        if problem := self.traits.source_problem(self.source):
            yield f"{self.name} {problem}"

    @property
    def traits(self) -> DatasetTraits:
        """Of its reader."""
        return traits(self.reader or self.name)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a reader of own images; empty for other data sets."""
        return {} if self.reader is None else {k: getattr(self, k) for k in SETTINGS}

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of every image; None: only the source tells."""
        if self.resolution is not None:
            return self.channels, self.resolution, self.resolution
        return self.traits.shape

    @property
    def asset(self) -> str | None:
        """Name of the external file that `source` names."""
        source = self.source or ""
        return source.removeprefix(ASSET) if source.startswith(ASSET) else None

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the external files that hold it, unless `source` says where it is."""
        if self.asset is not None:
            return (self.asset,)
        return () if self.source is not None else self.traits.assets


SETTINGS = tuple(key for key in Dataset.model_fields if key not in ("name", "source"))
