"""What is known of each data set before it is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ctm_core.config._section import Name, Positive, Section
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

#: A name that `ctm data` knows.
DatasetName = Annotated[Name, AfterValidator(READERS.known)]
