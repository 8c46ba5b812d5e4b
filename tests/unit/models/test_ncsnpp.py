"""NCSN++: its encoder, its embedding, its parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.embeddings import FourierEmbedding
from ctm_core.models.networks.ncsnpp import NCSNpp

CIFAR10: dict[str, Any] = {
    "resolution": 32,
    "channels": 3,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": (2, 2, 2),
    "num_blocks": 4,
    "attn_resolutions": (16,),
}
SIZES: dict[str, Any] = {
    "resolution": 8,
    "channels": 2,
    "label_dim": 3,
    "augment_dim": 4,
    "model_channels": 8,
    "channel_mult": (2, 1, 1),
    "num_blocks": 2,
    "attn_resolutions": (4,),
}


def small(**changes: Any) -> NCSNpp:
    torch.manual_seed(0)
    network = NCSNpp(**(SIZES | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def run(network: NCSNpp, **told: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 2, 8, 8, generator=generator)
    return network(x, torch.linspace(-1.5, 1, 3), **told)


def test_names_beyond_those_of_ddpmpp() -> None:
    names = dict(small().state_dict())
    plain = dict(DDPMpp(**SIZES, resample_filter=(1, 3, 3, 1)).state_dict())
    added = {name: tuple(names[name].shape) for name in names.keys() - plain.keys()}
    assert not plain.keys() - names.keys()
    assert added == {
        "map_noise.freqs": (8,),
        "enc.4x4_aux_residual.weight": (16, 2, 3, 3),  # from the image
        "enc.4x4_aux_residual.bias": (16,),
        "enc.4x4_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.2x2_aux_residual.weight": (8, 16, 3, 3),  # from the level above
        "enc.2x2_aux_residual.bias": (8,),
        "enc.2x2_aux_residual.resample_filter": (1, 1, 4, 4),
    }
    wider = {n for n in plain if n in names and plain[n].shape != names[n].shape}
    assert wider == {"map_label.weight", "map_label.bias", "map_augment.weight"} | {
        "map_layer0.weight"
    }
    assert names["map_layer0.weight"].shape == (32, 16)


def test_parameter_count_at_the_published_size() -> None:
    """Widths of EDM's CIFAR-10 VE network: 0.66 M parameters more than the VP network's."""
    with torch.device("meta"):
        network = NCSNpp(**CIFAR10)
        plain = DDPMpp(**CIFAR10)
    count, base = (sum(p.numel() for p in n.parameters()) for n in (network, plain))
    residual = (3 * 9 + 1) * 256 + (256 * 9 + 1) * 256  # two aux_residual layers
    embedding = 128 * 512 + 128 * 9  # twice the sinusoids into map_layer0 and map_augment
    assert count == base + residual + embedding == 56_397_827


@torch.no_grad()
def test_the_shrunken_input_joins_each_level_and_replaces_its_skip() -> None:
    network = small()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = (given[0], out)

        return hook

    for part in ("enc", "dec"):
        for name, module in getattr(network, part).items():
            module.register_forward_hook(note(f"{part}.{name}"))
    run(network)
    image = seen["enc.8x8_conv"][0]
    assert torch.equal(seen["enc.4x4_aux_residual"][0], image)
    first = (seen["enc.4x4_down"][1] + seen["enc.4x4_aux_residual"][1]) / math.sqrt(2)
    torch.testing.assert_close(seen["enc.4x4_block0"][0], first)
    torch.testing.assert_close(seen["enc.2x2_aux_residual"][0], first)
    second = (seen["enc.2x2_down"][1] + seen["enc.2x2_aux_residual"][1]) / math.sqrt(2)
    torch.testing.assert_close(seen["enc.2x2_block0"][0], second)
    # The last decoder block of a level takes the level's first skip.
    for name, skip in (("4x4", first), ("2x2", second)):
        block_input = seen[f"dec.{name}_block2"][0]
        torch.testing.assert_close(block_input[:, -skip.shape[1] :], skip)


@torch.no_grad()
def test_it_is_told_of_augmentation() -> None:
    network = small()
    none = run(network)
    assert torch.equal(none, run(network, augment_labels=torch.zeros(3, 4)))
    assert (none - run(network, augment_labels=torch.ones(3, 4))).abs().max() > 1e-3


def test_initial_weights() -> None:
    network = NCSNpp(**(SIZES | {"model_channels": 32}))
    layer = network.enc["4x4_aux_residual"]
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    bound = (6 / (fan_in + fan_out)) ** 0.5
    assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound * (1 + 1e-6)
    assert isinstance(network.map_noise, FourierEmbedding)
    assert network.map_noise.freqs.abs().max() > 16
