"""MeanFlow's DDPM++: its mean velocity is CTM's jump."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.ddpmpp_meanflow import MeanFlowDDPMpp

SIZES: dict[str, Any] = {
    "resolution": 8,
    "channels": 1,
    "time_s": True,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (),
}


def small() -> MeanFlowDDPMpp:
    torch.manual_seed(0)
    network = MeanFlowDDPMpp(**SIZES).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def velocity(network: MeanFlowDDPMpp, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """u(z, t, r): the layers on z itself."""
    u: Tensor = DDPMpp.forward(network, z, t.logit() / 4, r.logit() / 4)
    return u


def test_the_jump_goes_along_the_mean_velocity() -> None:
    network = small()
    t, r = (torch.tensor(v, dtype=torch.float64) for v in ([0.98, 0.5], [0.3, 0.002]))
    z = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    wide_t, wide_r = (v.view(-1, 1, 1, 1) for v in (t, r))
    with torch.no_grad():
        expected = z - (wide_t - wide_r) * velocity(network, z, t, r)
        jump = Trajectory(network).G(z / (1 - wide_t), t / (1 - t), r / (1 - r))
    torch.testing.assert_close((1 - wide_r) * jump, expected, rtol=1e-9, atol=1e-9)


def test_without_its_length_it_is_the_network_at_one_time() -> None:
    network, t = small(), torch.tensor([0.7, 0.9], dtype=torch.float64)
    x, r = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.1, 0.2]).double()
    at_one = network(x, t.logit() / 4, t.logit() / 4)
    assert not torch.allclose(network(x, t.logit() / 4, r.logit() / 4), at_one)
    network.zero_target_time()
    torch.testing.assert_close(network(x, t.logit() / 4, r.logit() / 4), at_one)


def test_embedding_holds_t_and_the_length() -> None:
    network = small()
    t, r = (torch.tensor([v], dtype=torch.float64) for v in (0.7, 0.4))
    seen: list[Tensor] = []
    network.map_layer0.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.zeros(1, 1, 8, 8, dtype=torch.float64), t.logit() / 4, r.logit() / 4)
    torch.testing.assert_close(seen[0][:, :16], network.map_noise(t))
    torch.testing.assert_close(seen[0][:, 16:], network.map_noise(t - r))
