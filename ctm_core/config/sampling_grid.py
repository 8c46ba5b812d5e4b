"""How each model is sampled, and by which protocols the samples are scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ctm_core.config._section import (
    BatchSize,
    Count,
    Later,
    Name,
    Names,
    Nfe,
    Positive,
    Section,
    Seed,
    Seeds,
    Times,
)
from ctm_core.config.sampler_traits import SamplerName, sampling_problem

#: The sampler of rows that an adaptive solver made: those of likelihood.
ADAPTIVE = "ode"

#: Cells of a grid at most, and of those that a protocol names.
MOST_CELLS = 10_000


class Cell(NamedTuple):
    """One way of sampling: a row of the table.

    ``gamma`` is None where it has no effect. ``times`` are the noise levels between the jumps,
    from high to low; empty for those of the experiment's own grid.
    """

    sampler: str
    nfe: int
    gamma: float | None
    times: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, sampler: str, nfe: int, gamma: float | None, times: tuple[float, ...] = ()
    ) -> Cell:
        """The cell of these numbers; at NFE 1 gamma adds no noise, so it is left out."""
        return cls(sampler, nfe, None if nfe == 1 else gamma, times)

    @property
    def label(self) -> str:
        """File-friendly name, e.g. ``gamma/nfe-4/gamma-0.5``, or ``…/times-0.8`` for times."""
        gamma = "none" if self.gamma is None else f"{self.gamma:g}"
        times = f"/times-{'_'.join(self.printed_times)}" if self.times else ""
        return f"{self.sampler}/nfe-{self.nfe}/gamma-{gamma}{times}"

    @property
    def printed_times(self) -> list[str]:
        """Each of the times with as many digits as it has."""
        return [str(time).removesuffix(".0") for time in self.times]

    @property
    def key(self) -> tuple[Any, ...]:
        """What hashes take for the cell: without times, which came later, if there are none."""
        return self if self.times else self[:3]

    @property
    def record(self) -> dict[str, Any]:
        """What records say of the cell, likewise."""
        cell = {"sampler": self.sampler, "gamma": self.gamma, "nfe": self.nfe}
        return cell | ({"times": list(self.times)} if self.times else {})


class SamplerGrid(Section):
    """NFE x gamma for one sampler, on the experiment's grid or between times of its own."""

    sampler: SamplerName
    nfe: tuple[Nfe, ...] = Field(min_length=1, max_length=1000)
    gamma: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((), max_length=1000)
    steps: Literal["all", "last"] = Field(
        "all", description="last: snapshots are not sampled this way"
    )
    times: Later[Times] = Field(
        (),
        description="noise levels between the jumps, from high to low: one fewer than nfe; "
        "default: the experiment's grid",
    )

    def _problems(self) -> Iterator[str]:
        if self.size > MOST_CELLS:
            yield f"nfe: {self.size:,} pairs of nfe and gamma; at most {MOST_CELLS:,}"

    @property
    def size(self) -> int:
        """Pairs of NFE and gamma, some of which may be one cell."""
        return len(self.nfe) * len(self.gamma or (None,))

    def problem(self, **model: Any) -> str | None:
        """Why a model cannot be sampled this way; see :func:`.sampler_traits.sampling_problem`."""
        problems = (
            sampling_problem(self.sampler, nfe, gamma, self.times, **model)
            for nfe in self.nfe
            for gamma in self.gamma or (None,)
        )
        return next(filter(None, problems), None)

    def cells(self) -> list[Cell]:
        """Every cell once."""
        gammas = self.gamma or (None,)
        cells = [
            Cell.of(self.sampler, nfe, gamma, self.times) for nfe in self.nfe for gamma in gammas
        ]
        return list(dict.fromkeys(cells))


class ProtocolCell(Section):
    """A single cell that a protocol scores."""

    model: Name
    sampler: SamplerName
    nfe: Nfe
    gamma: float | None = Field(None, ge=0, le=1)
    times: Later[Times] = ()

    @property
    def cell(self) -> Cell:
        """The cell without its model."""
        return Cell.of(self.sampler, self.nfe, self.gamma, self.times)


class Likelihood(Section):
    """Bits per dimension of a few images, by our own protocol (docs/likelihood.md)."""

    models: Names = Field(min_length=1, description="at their last step")
    images: Positive = Field(32, description="the first in an order shuffled by `seed`")
    split: Literal["train", "test"] = "train"
    probes: Count = Field(1, description="of the trace, per image; 0: exact trace")
    tolerance: float = Field(1e-5, ge=1e-12, le=1, description="of the ODE solver")
    seed: Seed = 0


Grids = Annotated[tuple[SamplerGrid, ...], Field(max_length=100)]
Cells = Annotated[tuple[ProtocolCell, ...], Field(max_length=MOST_CELLS)]


class Evaluation(Section):
    """What is sampled, and by which protocols it is scored."""

    sample_seeds: Seeds = (0, 1, 2)
    batch_size: BatchSize = 256
    sampling_precision: Later[Literal["fp32", "bf16"]] = Field(
        "fp32", description="of the network while it samples; bf16 changes the samples a little"
    )
    samplers: dict[Name, Grids] = Field(max_length=101)
    protocols: dict[Name, Literal["all"] | Cells] = Field(min_length=1, max_length=100)
    optional: Later[Names] = Field(
        (), description="of `protocols`: left out while an external file of theirs is missing"
    )
    likelihood: Likelihood | None = None

    def _problems(self) -> Iterator[str]:
        if unknown := [name for name in self.optional if name not in self.protocols]:
            yield f"optional: {unknown[0]} is not one of protocols ({', '.join(self.protocols)})"
        if set(self.optional) >= set(self.protocols):
            yield "optional: one of protocols at least has to remain"

    def sampled_in(self) -> dict[str, str]:
        """The precision of sampling where a hash or a record names it: unless it is fp32."""
        precision = self.sampling_precision
        return {} if precision == "fp32" else {"sampling_precision": precision}
