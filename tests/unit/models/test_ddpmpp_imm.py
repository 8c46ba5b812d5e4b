"""IMM's DDPM++: its conditions, and what its embedding is made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.ddpmpp_imm import IMMDDPMpp, thousandths

SIZES: dict[str, Any] = {
    "resolution": 8,
    "channels": 1,
    "label_dim": 3,
    "time_s": True,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (),
}


def test_conditions_are_linear_times() -> None:
    t = torch.tensor([0.006, 0.5, 0.994], dtype=torch.float64)
    c_noise = (0.5 * t / (1 - t)).log() / 4
    torch.testing.assert_close(thousandths(c_noise), 1000 * t)
    assert thousandths(torch.tensor(math.inf)) == 1000


def test_names_are_ddpmpps_without_s_in_blocks() -> None:
    plain, own = set(DDPMpp(**SIZES).state_dict()), set(IMMDDPMpp(**SIZES).state_dict())
    assert own < plain
    assert all(".affine_s." in name for name in plain - own)


def test_embedding() -> None:
    torch.manual_seed(0)
    network = IMMDDPMpp(**SIZES)
    x = torch.zeros(2, 1, 8, 8)
    c_t, c_s = torch.tensor([0.3, -0.2]), torch.tensor([-0.4, -0.5])
    added = torch.randn(2, 8)
    found, none = network._embedded(x, c_t, c_s, added)
    assert none is None

    def layers(emb: torch.Tensor, end: str) -> torch.Tensor:
        first, second = (getattr(network, f"map_layer{n}{end}") for n in (0, 1))
        hidden: torch.Tensor = second(functional.silu(first(emb)))
        return hidden

    of_t = layers(network.map_noise(thousandths(c_t)) + added, "")
    of_s = layers(network.map_noise(thousandths(c_s)), "_s")  # the label is not for s
    torch.testing.assert_close(found, functional.silu(of_t + of_s))
