"""ctm_core.models.networks.ddpmpp, and the layers that all architectures share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ctm_core.config import Network
from ctm_core.models.networks import build
from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.layers import Conv2d, Resample, UNetBlock, group_norm
from ctm_core.runtime.errors import UserError

CIFAR10: dict[str, Any] = {
    "resolution": 32,
    "channels": 3,
    "model_channels": 128,
    "channel_mult": (2, 2, 2),
    "num_blocks": 4,
    "attn_resolutions": (16,),
}
SMALL: dict[str, Any] = {
    "resolution": 8,
    "channels": 1,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
}


def small(seed: int = 0, **changes: Any) -> DDPMpp:
    """A tiny network whose output layers are not nearly zero, so that outputs say something."""
    torch.manual_seed(seed)
    network = DDPMpp(**(SMALL | changes))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.linspace(-1.5, 1, batch, dtype=dtype), torch.linspace(-1.6, 0.5, batch)


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"augment_dim": 9}, 55_733_891),  # EDM's CIFAR-10 teacher
        ({}, 55_732_739),
        ({"label_dim": 10}, 55_734_147),
        ({"time_s": True}, 60_395_267),  # CTM's CIFAR-10 students
        ({"time_s": True, "label_dim": 10}, 60_396_675),
    ],
)
def test_published_parameter_counts(arguments: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        network = DDPMpp(**(CIFAR10 | arguments))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_student_adds_only_layers_of_s() -> None:
    student = set(small(time_s=True).state_dict())
    teacher = set(small().state_dict())
    assert teacher < student
    added = student - teacher
    assert all(n.startswith(("map_layer0_s.", "map_layer1_s.")) or "affine_s." in n for n in added)
    blocks = {n.removesuffix(".affine.weight") for n in teacher if n.endswith(".affine.weight")}
    assert {n.removesuffix(".affine_s.weight") for n in added if "affine_s.weight" in n} == blocks


def test_names_of_levels() -> None:
    network = DDPMpp(**(SMALL | {"channel_mult": (1, 2, 2), "num_blocks": 2}))
    assert list(network.enc) == [
        *("8x8_conv", "8x8_block0", "8x8_block1"),
        *("4x4_down", "4x4_block0", "4x4_block1"),
        *("2x2_down", "2x2_block0", "2x2_block1"),
    ]
    assert list(network.dec) == [
        *("2x2_in0", "2x2_in1", "2x2_block0", "2x2_block1", "2x2_block2"),
        *("4x4_up", "4x4_block0", "4x4_block1", "4x4_block2"),
        *("8x8_up", "8x8_block0", "8x8_block1", "8x8_block2", "8x8_aux_norm", "8x8_aux_conv"),
    ]
    attending = [n.split(".qkv")[0] for n in network.state_dict() if n.endswith("qkv.weight")]
    assert attending == [
        *("enc.4x4_block0", "enc.4x4_block1"),
        *("dec.2x2_in0", "dec.4x4_block2"),  # the bottleneck always, a level's last block
    ]
    assert network.output_weight is network.dec["8x8_aux_conv"].weight


@pytest.mark.parametrize("resolution", [4, 8, 28])
def test_shapes(resolution: int) -> None:
    network = DDPMpp(**(SMALL | {"resolution": resolution, "channels": 2}))
    x = torch.randn(2, 2, resolution, resolution)
    assert network(x, torch.zeros(2)).shape == x.shape


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 9}, "multiple of 2"),
        ({"resolution": 28, "channel_mult": (1, 1, 1, 1)}, "multiple of 8"),
        ({"model_channels": 6}, "norm groups"),
        ({"model_channels": 48, "channel_mult": (1, 2)}, "144 channels"),  # in the decoder
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DDPMpp(**(SMALL | changes))


def test_build_from_configuration() -> None:
    section = Network(
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=2,
        attn_resolutions=(4,),
        dropout=0.2,
        augment_dim=5,
    )
    network = build(section, resolution=8, channels=1, label_dim=3, time_s=True)
    assert isinstance(network, DDPMpp)
    assert (network.label_dim, network.augment_dim, network.time_s) == (3, 0, True)
    teacher = build(section, resolution=8, channels=1, label_dim=3, time_s=False)
    assert isinstance(teacher, DDPMpp)
    assert (teacher.label_dim, teacher.augment_dim, teacher.time_s) == (3, 5, False)
    assert "8x8_block1" in network.enc
    assert {m.dropout for m in network.modules() if isinstance(m, UNetBlock)} == {0.2}


# -- conditioning ---------------------------------------------------------------------------------


@torch.no_grad()
def test_labels_enter_and_none_means_zero() -> None:
    network = small(label_dim=3)
    x, c, _ = inputs()
    one_hot = torch.eye(3)
    assert torch.equal(network(x, c), network(x, c, labels=torch.zeros(3, 3)))
    outputs = [network(x, c), network(x, c, labels=one_hot), network(x, c, labels=one_hot.flip(0))]
    assert (outputs[0] - outputs[1]).abs().min() > 0
    assert (outputs[0] - outputs[2])[0].abs().max() > 1e-3
    # The middle sample has the same label in both.
    assert torch.allclose(outputs[1][1], outputs[2][1], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("path", ["map_layer0", "map_layer0_s"])
def test_the_label_enters_both_embeddings(path: str) -> None:
    network = small(label_dim=3, time_s=True)
    getattr(network, path).weight.zero_()  # shut the one way in; the other remains
    x, c, c_s = inputs()
    labels = torch.eye(3)
    assert (network(x, c, c_s, labels) - network(x, c, c_s)).abs().max() > 1e-3


@torch.no_grad()
def test_augmentation_labels() -> None:
    network = small(augment_dim=2)
    x, c, _ = inputs()
    assert torch.equal(network(x, c), network(x, c, augment_labels=torch.zeros(3, 2)))
    told = network(x, c, augment_labels=torch.ones(3, 2))
    assert (told - network(x, c)).abs().max() > 1e-3


@torch.no_grad()
def test_the_target_time_enters() -> None:
    network = small(time_s=True)
    x, c, c_s = inputs()
    assert (network(x, c, c_s) - network(x, c, c)).abs().max() > 1e-3
    with pytest.raises(UserError, match="needs the target time"):
        network(x, c)
    with pytest.raises(UserError, match="without a target time"):
        small()(x, c, c_s)


# -- arithmetic -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_box_resampling_equals_its_convolution(direction: str, kernel: int) -> None:
    layer = Conv2d(4, 6, kernel, **{direction: True}).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    by_pooling = layer(x)
    layer.box = False
    torch.testing.assert_close(by_pooling, layer(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_filter_after_the_convolution_reads_around_the_image() -> None:
    """On a canvas of zeros around the image both orders are one; then the image is cut out."""
    taps = (1, 3, 3, 1)
    layer = Conv2d(2, 3, 3, down=True, resample_filter=taps, conv_first=True).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    canvas = torch.nn.functional.pad(x, (4,) * 4)
    whole = torch.nn.functional.conv2d(canvas, layer.weight, layer.bias, padding=1)
    expected = Resample(up=False, resample_filter=taps)(whole)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    before = Conv2d(2, 3, 3, down=True, resample_filter=taps).double()
    before.load_state_dict(layer.state_dict())
    assert (before(x) - expected).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_and_doubles_or_halves(taps: tuple[float, ...]) -> None:
    x = torch.ones(1, 2, 8, 8)
    for up, side in ((True, 16), (False, 4)):
        layer = Resample(up=up, resample_filter=taps)
        assert not list(layer.parameters())
        assert layer(x).shape == (1, 2, side, side)
        torch.testing.assert_close(
            layer(x)[:, :, 1:-1, 1:-1], x.new_ones(1, 2, side - 2, side - 2)
        )


@torch.no_grad()
def test_a_block_scales_and_shifts() -> None:
    """ADM's modulation written out, and a skip without weights."""
    block = UNetBlock(8, 8, 4, down=True, adaptive_scale=True, resample_proj=False, skip_scale=1.0)
    for parameter in block.parameters():
        parameter.normal_()
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    scale, shift = block.affine(emb)[:, :, None, None].split(8, dim=1)
    silu = torch.nn.functional.silu
    h = block.norm1(block.conv0(silu(block.norm0(x)))) * (1 + scale) + shift
    expected = block.conv1(silu(h)) + torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(block(x, emb), expected)
    assert "skip.weight" not in block.state_dict()
    assert "skip.resample_filter" in block.state_dict()


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(UserError, match="12 channels cannot be split into 5 equal heads"):
        UNetBlock(8, 12, 4, attention=True, heads=5)


@torch.no_grad()
def test_attention_mixes_by_softmax() -> None:
    """The block's attention against a loop over heads and positions."""
    block = UNetBlock(8, 8, 4, attention=True, heads=2).double()
    for parameter in block.parameters():
        parameter.normal_()
    y = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    qkv = block.qkv(block.norm2(y)).reshape(2, 2, 4, 3, 6)  # batch, head, channel, q/k/v, place
    mixed = torch.zeros(2, 2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for head in range(2):
            q, k, v = qkv[b, head].unbind(1)
            for place in range(6):
                weights = torch.softmax((q[:, place, None] * k).sum(0) / 2.0, 0)
                mixed[b, head, :, place] = (weights * v).sum(1)
    expected = block.proj(mixed.reshape(2, 8, 2, 3))
    torch.testing.assert_close(block._attention(y), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_channels_last_and_bf16_run() -> None:
    network = small(time_s=True, label_dim=3)
    x, c, c_s = inputs()
    exact = network(x, c, c_s, torch.eye(3))
    network = network.to(memory_format=torch.channels_last)
    last = network(x.contiguous(memory_format=torch.channels_last), c, c_s, torch.eye(3))
    torch.testing.assert_close(last, exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, c, c_s, torch.eye(3)).float()
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1


def test_gradients_reach_every_parameter() -> None:
    network = small(time_s=True, label_dim=3)
    x, c, c_s = inputs()
    network(x, c, c_s, torch.eye(3)).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@torch.no_grad()
def test_dropout_only_in_train_mode() -> None:
    network = small(dropout=0.5)
    x, c, _ = inputs()
    torch.manual_seed(0)
    assert not torch.equal(network(x, c), network(x, c))
    network.eval()
    assert torch.equal(network(x, c), network(x, c))
    without = copy.deepcopy(network)
    for module in without.modules():
        if isinstance(module, UNetBlock):
            module.dropout = 0.0
    without.train()
    assert torch.equal(network(x, c), without(x, c))


@torch.no_grad()
def test_samples_do_not_mix() -> None:
    network = small(time_s=True)
    x, c, c_s = inputs()
    whole = network(x, c, c_s)
    for row in range(3):
        alone = network(x[row : row + 1], c[row : row + 1], c_s[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-4, atol=1e-5)


# -- initial weights ------------------------------------------------------------------------------


def test_initial_weights() -> None:
    network = DDPMpp(**(SMALL | {"model_channels": 32}), time_s=True)
    block = network.enc["8x8_block0"]
    for layer, scale in (
        (block.conv0, 1.0),
        (block.affine, 1.0),
        (block.affine_s, 1.0),  # not zero: a student starts as a perturbed teacher
        (network.map_layer1_s, 1.0),
        (network.enc["4x4_block0"].skip, 1.0),
        (block.conv1, 1e-5),
        (network.dec["4x4_in0"].proj, 1e-5),
        (network.dec["8x8_aux_conv"], 1e-5),
    ):
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(layer.weight)
        bound = scale * (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound * (1 + 1e-6)
        assert not layer.bias.any()


def test_initial_weights_follow_the_global_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return DDPMpp(**SMALL).map_layer0.weight

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_norm_groups() -> None:
    assert [group_norm(c).num_groups for c in (4, 12, 36, 128, 256)] == [1, 3, 9, 32, 32]
    with pytest.raises(UserError, match="2 channels"):
        group_norm(2)
