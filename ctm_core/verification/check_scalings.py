"""Every parametrisation and loss weight at the tabulated times."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ctm_core.diffusion.scalings import (
    inner_coefficients,
    loss_weight,
    outer_coefficients,
    scalings,
)
from ctm_core.verification import case
from ctm_core.verification.golden import Check, Golden, compare

__all__: list[str] = []


@case("grids_and_draws")
def coefficients(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """c_in, 250 ln t, and c_skip and c_out of every inner and outer parametrisation."""
    t, s = (golden[f"scalings/{key}"].to(precision) for key in "ts")
    edm = scalings(t)
    ours = {"c_in": edm.c_in, "rescaled_t": 1000 * edm.c_noise}
    for kind in sorted({key.split("/")[1] for key in golden.keys(r"scalings/(inner|outer)_.*")}):
        side, name = kind.split("_", 1)
        pair = inner_coefficients(name, t) if side == "inner" else outer_coefficients(name, t, s)
        ours |= {f"{kind}/c_skip": pair.c_skip, f"{kind}/c_out": pair.c_out}
    for name, value in ours.items():
        key = f"scalings/{name}"
        yield compare(key, value, golden[key], precision)


@case("grids_and_draws")
def weights(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """Every weighting of the released code."""
    t, s = (golden[f"scalings/{key}"].to(precision) for key in "ts")
    for key in golden.keys(r"weight/.+"):
        ours = loss_weight(key.removeprefix("weight/"), t, s)
        # Rows with s = t, where the weight is infinite, are not stored.
        yield compare(key, ours[ours.isfinite()], golden[key], precision)
