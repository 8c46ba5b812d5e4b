"""Every parametrisation and loss weight at the tabulated times."""

from __future__ import annotations

from collections.abc import Iterator

from ctm_core.diffusion.scalings import (
    inner_coefficients,
    loss_weight,
    outer_coefficients,
    scalings,
)
from ctm_core.verification import case
from ctm_core.verification.golden import Check, Golden


@case("grids_and_draws", on_device=False)
def coefficients(golden: Golden) -> Iterator[Check]:
    """c_in, 250 ln t, and c_skip and c_out of every inner and outer parametrisation."""
    t, s = (golden.tensor(f"scalings/{key}") for key in "ts")
    edm = scalings(t)
    ours = {"c_in": edm.c_in, "rescaled_t": 1000 * edm.c_noise}
    for kind in sorted({key.split("/")[1] for key in golden.keys(r"scalings/(inner|outer)_.*")}):
        side, name = kind.split("_", 1)
        pair = inner_coefficients(name, t) if side == "inner" else outer_coefficients(name, t, s)
        ours |= {f"{kind}/c_skip": pair.c_skip, f"{kind}/c_out": pair.c_out}
    for name, value in ours.items():
        yield golden.check(f"scalings/{name}", value)


@case("grids_and_draws", on_device=False)
def weights(golden: Golden) -> Iterator[Check]:
    """Every weighting of the released code."""
    t, s = (golden.tensor(f"scalings/{key}") for key in "ts")
    for key in golden.keys(r"weight/.+"):
        ours = loss_weight(key.removeprefix("weight/"), t, s)
        # Rows with s = t, where the weight is infinite, are not stored.
        yield golden.check(key, ours[ours.isfinite()])
