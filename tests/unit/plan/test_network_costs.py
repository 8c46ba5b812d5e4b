"""Operations, weights and activations of networks that are never built."""

from __future__ import annotations

import pytest
import torch
from fixtures import tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ctm_core.config import Discriminator, Perceptual
from ctm_core.config.protocols import Protocol
from ctm_core.models import weight_file
from ctm_core.plan import network_costs


def test_a_convolution_costs_what_it_multiplies() -> None:
    with torch.device("meta"):
        layer = nn.Conv2d(3, 5, 3, padding=1)
        cost = network_costs.measured(layer, layer, torch.zeros(2, 3, 8, 8))
    forward = 2 * 3 * 5 * 9 * 64  # a multiplication and an addition each
    assert cost.operations == {
        "forward": forward,
        "through": 2 * forward,
        "twice": 3 * forward,
        "train": 3 * forward,
        "tangent": pytest.approx(network_costs.TANGENT * forward),
    }
    assert (cost.parameters, cost.trained) == (3 * 5 * 9 + 5, 3 * 5 * 9 + 5)
    assert cost.activation_bytes == 4 * 3 * 64, "the input, and no weight"
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("time_s", [False, True])
def test_a_denoiser_has_the_weights_of_the_built_one(time_s: bool) -> None:
    made = tiny.experiment()
    cost = network_costs.denoiser(made.network, made.diffusion, (1, 8, 8), 10, time_s)
    model = weight_file.build_model(
        network=made.network,
        diffusion=made.diffusion,
        resolution=8,
        channels=1,
        label_dim=10,
        time_s=time_s,
    )
    assert cost.parameters == cost.trained == sum(p.numel() for p in model.parameters())
    work = cost.operations
    assert work["forward"] < work["through"] < work["train"]
    assert cost.activation_bytes > 0


def test_a_backward_pass_costs_what_the_rule_says() -> None:
    """Two products of a layer's size for each of its own, by torch's counter on a real network."""
    made = tiny.experiment()
    model = weight_file.build_model(
        network=made.network,
        diffusion=made.diffusion,
        resolution=8,
        channels=1,
        label_dim=10,
        time_s=True,
    )
    with FlopCounterMode(display=False) as counter:
        image = torch.zeros(1, 1, 8, 8, requires_grad=True)
        one, labels = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        model.raw(image, one, one / 2, labels).sum().backward()
    cost = network_costs.denoiser(made.network, made.diffusion, (1, 8, 8), 10, True)
    assert cost.operations["train"] == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_only_heads_of_a_discriminator_learn() -> None:
    section = Discriminator(backbones=("tiny",), resolution=64, width=8)
    cost = network_costs.discriminator(section, (1, 8, 8))
    assert 0 < cost.trained < cost.parameters
    assert cost.operations["forward"] < cost.operations["train"]


def test_a_distance_without_a_network_costs_nothing() -> None:
    none = network_costs.perceptual("pseudo_huber", Perceptual(resize=32), (1, 8, 8))
    assert none.operations["forward"] == none.parameters == 0
    small = network_costs.perceptual("lpips_vgg", Perceptual(resize=32), (3, 32, 32))
    large = network_costs.perceptual("lpips_vgg", Perceptual(resize=64), (3, 32, 32))
    assert large.operations["forward"] == pytest.approx(4 * small.operations["forward"])


def test_feature_networks_have_the_dimensions_of_their_features() -> None:
    found = network_costs.features(Protocol.model_validate(tiny.PROTOCOL), (1, 8, 8))
    assert found is not None and found[1] == 64
    unknown = Protocol.model_validate(tiny.PROTOCOL | {"features": "mine"})
    assert network_costs.features(unknown, (1, 8, 8)) is None
