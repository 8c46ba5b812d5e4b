"""EDM's NCSN++ and ADM, and single blocks of all its networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ctm_core.models.networks.layers import UNetBlock
from ctm_core.verification import case
from ctm_core.verification.builders import denoiser
from ctm_core.verification.check_ddpmpp import denoiser_checks
from ctm_core.verification.golden import Check, Golden

#: What EDM's blocks are where their arguments do not say.
ADM_BLOCK: dict[str, Any] = {
    "skip_scale": 1.0, "eps": 1e-5, "adaptive_scale": True, "resample_proj": False,
}  # fmt: skip


@case("edm_ncsnpp")
def ncsnpp(golden: Golden) -> Iterator[Check]:
    """Raw output and denoiser of NCSN++, whose Fourier phases reach hundreds of radians."""
    yield from denoiser_checks(golden, denoiser(golden), solve=True)


@case("edm_adm")
def adm(golden: Golden) -> Iterator[Check]:
    """Raw output and denoiser of ADM in EDM's form."""
    yield from denoiser_checks(golden, denoiser(golden))


@case("edm_blocks")
@torch.no_grad()
def blocks(golden: Golden) -> Iterator[Check]:
    """Every single block: both kinds of modulation, both filters, up, down, attention."""
    for name, arguments in golden.meta["blocks"].items():
        block = single_block(arguments).to(golden.device, golden.precision)
        block.load_state_dict(golden.weights(f"{name}/net"), strict=True)
        x, emb = (golden.tensor(f"{name}/in/{key}") for key in ("x", "emb"))
        yield golden.check(f"{name}/out64/y", block(x, emb))


def single_block(arguments: Mapping[str, Any]) -> UNetBlock:
    """A block by EDM's constructor arguments; what they leave out is ADM's, as in EDM."""
    heads = arguments.get("num_heads")
    if heads is None:
        heads = arguments["out_channels"] // arguments.get("channels_per_head", 64)
    keys = (
        "in_channels", "out_channels", "emb_channels", "up", "down", "attention", "dropout",
        "skip_scale", "eps", "resample_filter", "adaptive_scale", "resample_proj",
    )  # fmt: skip
    given = {key: arguments[key] for key in keys if key in arguments}
    return UNetBlock(**(ADM_BLOCK | given), heads=heads)
