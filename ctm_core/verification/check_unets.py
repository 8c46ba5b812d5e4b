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

__all__ = ["single_block"]


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
        block = single_block(arguments).to(golden.precision)
        block.load_state_dict(golden.weights(f"{name}/net"), strict=True)
        x, emb = (golden.tensor(f"{name}/in/{key}") for key in ("x", "emb"))
        yield golden.check(f"{name}/out64/y", block(x, emb))


def single_block(arguments: Mapping[str, Any]) -> UNetBlock:
    """A block by EDM's constructor arguments; what they leave out is ADM's, as in EDM."""
    heads = arguments.get("num_heads")
    if heads is None:
        heads = arguments["out_channels"] // arguments.get("channels_per_head", 64)
    return UNetBlock(
        arguments["in_channels"],
        arguments["out_channels"],
        arguments["emb_channels"],
        up=arguments.get("up", False),
        down=arguments.get("down", False),
        attention=arguments.get("attention", False),
        heads=heads,
        dropout=arguments.get("dropout", 0),
        skip_scale=arguments.get("skip_scale", 1.0),
        eps=arguments.get("eps", 1e-5),
        resample_filter=arguments.get("resample_filter", (1, 1)),
        adaptive_scale=arguments.get("adaptive_scale", True),
        resample_proj=arguments.get("resample_proj", False),
    )
