"""Claims of the paper as data: which cells to compare, and what the paper says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ctm_core.config._section import (
    Later,
    Name,
    Names,
    Nfe,
    OneOf,
    Section,
    Text,
    Times,
    duplicates,
)
from ctm_core.config.metric_registry import FAMILIES
from ctm_core.config.sampler_traits import JUMP_SAMPLER, samplers, sampling_problem
from ctm_core.config.sampling_grid import ADAPTIVE, Cell

#: Stands for the experiments that no claim names, such as those on own images.
OTHERS = "others"

#: Families of which one value can be better than another; ``fd`` includes ``fid``.
Kind = Annotated[str, OneOf(tuple(f for f in FAMILIES if FAMILIES[f].direction and f != "fid"))]


class ClaimedCell(Section):
    """A cell of a model, at its last evaluated step."""

    model: Name
    sampler: Annotated[str, OneOf((*samplers(), ADAPTIVE))] = JUMP_SAMPLER
    nfe: Nfe | None = Field(
        None, description="left out only for `ode`, whose evaluations are an outcome"
    )
    gamma: float | None = Field(None, ge=0, le=1)
    times: Later[Times] = ()

    def _problems(self) -> Iterator[str]:
        if (self.nfe is None) != (self.sampler == ADAPTIVE):
            yield f"nfe is left out for the sampler {ADAPTIVE}, and only there"
        if self.nfe is not None:
            problem = sampling_problem(self.sampler, self.nfe, self.gamma, self.times)
            if problem:
                yield problem
        if self.nfe in (None, 1) and self.gamma is not None:
            yield f"sampler {self.sampler} has no gamma here; leave it out"

    @property
    def cell(self) -> Cell | None:
        """The cell without its model; None for ``ode``."""
        if self.nfe is None:
            return None
        return Cell(self.sampler, self.nfe, self.gamma, self.times)

    def fits(self, cell: Cell) -> bool:
        """Whether a cell of the table is this one."""
        return cell == self.cell if self.nfe is not None else cell.sampler == self.sampler


class PublishedValue(Section):
    """A value of config/published.yaml in place of a cell."""

    published: Name = Field(description="its key")


class Comparison(Section):
    """d = first - factor * second.

    ``lower``: d < -margin. ``higher``: d > margin. ``within``: -margin < d < margin.
    """

    first: ClaimedCell
    second: ClaimedCell | PublishedValue
    direction: Literal["lower", "higher", "within"]
    factor: float = Field(1.0, gt=0, le=1e9)
    margin: float = Field(0.0, ge=0, le=1e9, description="in the metric's own unit")
    metric: Kind = Field(
        "fd", description="of most samples; fd: FID where the protocol makes it one"
    )

    def _problems(self) -> Iterator[str]:
        if self.direction == "within" and not self.margin:
            yield "`within` needs a margin above 0"


class Test(Section):
    """Comparisons that experiments can be asked; the claim is that all of them hold."""

    __test__ = False  # pytest takes a class of this name for one of its own

    experiments: Names = Field(
        min_length=1,
        description="others: experiments that no claim names, where they have all the cells",
    )
    protocol: Name | None = Field(
        None, description="default: the one that scores most of the experiment's cells"
    )
    comparisons: tuple[Comparison, ...] = Field(min_length=1, max_length=1000)
    note: Text | None = Field(None, description="what to know when reading the outcome")


class Claim(Section):
    """One claim, as the paper makes it."""

    id: Name
    claim: Text
    paper: Text = Field(description="where the paper makes it")
    kind: Literal["result", "choice"] = Field(
        "result",
        description="choice: what the paper does without comparing it with anything else",
    )
    tests: tuple[Test, ...] = Field((), max_length=1000)
    needs: Text | None = Field(None, description="what its tests need that a desk does not have")
    not_testable: Text | None = Field(None, description="why nothing here can test it")

    def _problems(self) -> Iterator[str]:
        if bool(self.tests) == (self.not_testable is not None):
            yield f"{self.id} needs either tests or not_testable, and not both"
        if twice := duplicates(name for test in self.tests for name in test.experiments):
            yield f"{self.id} tests {twice[0]} twice; make it one test"


class Claims(Section):
    """config/claims.yaml."""

    claims: tuple[Claim, ...] = Field(min_length=1, max_length=1000)

    def _problems(self) -> Iterator[str]:
        if twice := duplicates(claim.id for claim in self.claims):
            yield f"duplicate id {twice[0]}"
