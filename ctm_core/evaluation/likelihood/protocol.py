"""The choices of a likelihood, and how a record names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctm_core.evaluation.likelihood import published_protocol
from ctm_core.runtime.errors import UserError

RESIDUALS = ("none", "reconstruction")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class LikelihoodProtocol:
    """How likelihood is measured."""

    #: Of the trace, per image; 0 for the exact trace: a derivative for every element of an image.
    probes: int = 1
    residual: str = "none"  #: or ``reconstruction``
    tolerance: float = TOLERANCE  #: of the solver, relative and absolute
    #: Of the choice of images, dequantisation, noise and probes, each drawn by image index.
    seed: int = 0
    published: bool = False  #: the published script's, which leaves no choice of the first three
    reading: str = "own_noise"  #: of its residual term, see :data:`.published_protocol.READINGS`

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("residual", self.residual, RESIDUALS),
            ("reading", self.reading, published_protocol.READINGS),
        ):
            if value not in allowed:
                raise UserError(f"unknown {key} {value!r}; allowed: {', '.join(allowed)}")
        if self.probes < 0 or not self.tolerance > 0:
            raise UserError("probes must not be negative, and the tolerance must be positive")
        ours = (self.probes, self.residual, self.tolerance) == (1, "none", TOLERANCE)
        if self.published and not ours:
            raise UserError(
                "the published protocol fixes probes, residual and tolerance; leave them out"
            )
        if not self.published and self.reading != "own_noise":
            raise UserError("reading belongs to the published protocol; ask for that, or leave it")

    def describe(self) -> dict[str, Any]:
        """For the record."""
        if self.published:
            return {
                "name": "published",
                "reading_of_residual": self.reading,
                "dequantisation": "none; 7 bits added",
                "trace": "Rademacher, 1",
                "solver": {"method": "RK45", "tolerance": published_protocol.TOLERANCE},
                "start": f"sigma({published_protocol.START:g}) in the warped time",
                "mode": "train: dropout is active",
                "images": "shuffled, flipped at random",
            }
        return {
            "name": "dequantised",
            "density": "q at sigma_min of the flow from N(0, sigma_max^2)",
            "residual": self.residual,
            "dequantisation": "uniform; log2(127.5) bits added",
            "trace": "exact" if not self.probes else f"Rademacher, {self.probes}",
            "solver": {"method": "RK45", "tolerance": self.tolerance},
            "mode": "eval",
        }
