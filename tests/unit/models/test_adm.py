"""ADM in EDM's form: names, heads, conditioning, parameter count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.models.networks.adm import ADM
from ctm_core.models.networks.layers import UNetBlock
from ctm_core.runtime.errors import UserError

IMAGENET64: dict[str, Any] = {
    "resolution": 64,
    "channels": 3,
    "label_dim": 1000,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
SIZES: dict[str, Any] = {
    "resolution": 8,
    "channels": 2,
    "label_dim": 3,
    "augment_dim": 4,
    "model_channels": 32,
    "channel_mult": (2, 1),
    "num_blocks": 1,
    "attn_resolutions": (8, 4),
}


def small(**changes: Any) -> ADM:
    torch.manual_seed(0)
    network = ADM(**(SIZES | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def test_published_parameter_count() -> None:
    with torch.device("meta"):
        network = ADM(**IMAGENET64)
    assert sum(p.numel() for p in network.parameters()) == 295_899_267


def test_names() -> None:
    network = small()
    assert list(network.enc) == ["8x8_conv", "8x8_block0", "4x4_down", "4x4_block0"]
    assert list(network.dec) == [
        *("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1"),
        *("8x8_up", "8x8_block0", "8x8_block1"),
    ]
    state = network.state_dict()
    assert {name for name in state if not name.startswith(("enc.", "dec."))} == {
        *("map_augment.weight", "map_label.weight", "map_layer0.weight", "map_layer0.bias"),
        *("map_layer1.weight", "map_layer1.bias", "out_norm.weight", "out_norm.bias"),
        *("out_conv.weight", "out_conv.bias"),
    }
    assert state["enc.8x8_conv.weight"].shape == (64, 2, 3, 3)  # the first level's width
    assert {"enc.4x4_down.skip.resample_filter", "dec.8x8_up.skip.resample_filter"} <= set(state)
    assert not {"enc.4x4_down.skip.weight", "dec.8x8_up.skip.weight"} & set(state)
    assert network.output_weight is network.out_conv.weight


@pytest.mark.parametrize(
    ("mult", "attending"),
    [
        # 64 channels at 8x8, 32 at 4x4: the latter are too few for a head.
        ((2, 1), {"enc.8x8_block0": 1, "dec.8x8_block0": 1, "dec.8x8_block1": 1}),
        (
            (1, 5),  # 160 channels: two heads of 80
            dict.fromkeys(
                ("enc.4x4_block0", "dec.4x4_in0", "dec.4x4_block0", "dec.4x4_block1"), 2
            ),
        ),
    ],
)
def test_heads(mult: tuple[int, int], attending: dict[str, int]) -> None:
    network = small(channel_mult=mult)
    heads = {n: m.heads for n, m in network.named_modules() if isinstance(m, UNetBlock)}
    assert {name: count for name, count in heads.items() if count} == attending
    assert {n.split(".qkv")[0] for n in network.state_dict() if "qkv.weight" in n} == set(
        attending
    )


def test_channels_that_are_no_whole_heads_are_refused() -> None:
    with pytest.raises(UserError, match="200 channels cannot be split into 3 equal heads"):
        small(model_channels=40, channel_mult=(1, 5))


@torch.no_grad()
def test_what_the_blocks_are_told() -> None:
    """The class enters after the layers, without scale or bias; the augmentation before them."""
    network = small()
    heard: list[Tensor] = []
    block = network.enc["8x8_block0"]
    block.affine.register_forward_hook(lambda module, given, out: heard.append(given[0]))
    x, c = torch.randn(3, 2, 8, 8), torch.linspace(-1.5, 1, 3)
    labels, augment = torch.eye(3), torch.randn(3, 4)
    network(x, c, None, labels, augment)
    network(x, c)
    silu = functional.silu
    for given, (y, a) in zip(heard, ((labels, augment), (labels * 0, augment * 0)), strict=True):
        emb = network.map_noise(c) + a @ network.map_augment.weight.T
        emb = network.map_layer1(silu(network.map_layer0(emb)))
        torch.testing.assert_close(given, silu(emb + y @ network.map_label.weight.T))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    network = ADM(**SIZES)
    for name, module in network.named_modules():
        if name.endswith(("conv1", "proj", "out_conv")):
            assert not any(p.any() for p in module.parameters()), name
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert 0.7 * bound < float(module.weight.detach().abs().max()) <= bound, name
    with torch.no_grad():  # so it starts as the zero map
        assert not network(torch.randn(2, 2, 8, 8), torch.zeros(2)).any()
