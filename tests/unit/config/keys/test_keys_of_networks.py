"""What the keys of `network` and `diffusion` change: the network that is built, and its times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.sections import shows
from torch import Tensor, nn

from ctm_core import config
from ctm_core.config.network import architectures
from ctm_core.diffusion import sampling
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import networks, weight_file
from ctm_core.models.generation import Generator
from ctm_core.models.networks.layers import Conv2d, UNetBlock
from ctm_core.models.networks.raw import RawNetwork

SMALL: dict[str, Any] = {
    "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip


def build(time_s: bool = False, **keys: Any) -> RawNetwork:
    """A network of 8x8 images with three classes."""
    torch.manual_seed(0)
    section = config.Network.model_validate(SMALL | keys)
    return networks.build(section, resolution=8, channels=1, label_dim=3, time_s=time_s)


def blocks(network: nn.Module, part: str = "enc") -> dict[str, UNetBlock]:
    """Blocks of one half by name: ``8x8_block0``."""
    modules = getattr(network, part).items()
    return {name: block for name, block in modules if isinstance(block, UNetBlock)}


def widths(network: nn.Module) -> dict[str, int]:
    return {name: block.conv1.out_channels for name, block in blocks(network).items()}


@shows("Network.architecture", "Experiment.network")
@pytest.mark.parametrize("name", architectures())
def test_architecture(name: str) -> None:
    own: dict[str, Any] = {"model_channels": 32} if name == "openai_adm" else {}
    made = build(architecture=name, **own)
    assert type(made).__module__ == f"ctm_core.models.networks.{name}"


@shows("Network.model_channels")
def test_model_channels() -> None:
    assert {name: 2 * width for name, width in widths(build()).items()} == widths(
        build(model_channels=16)
    )


@shows("Network.channel_mult")
def test_channel_mult() -> None:
    assert widths(build(channel_mult=[1, 2, 3])) == {
        "8x8_block0": 8, "4x4_down": 8, "4x4_block0": 16, "2x2_down": 16, "2x2_block0": 24,
    }  # fmt: skip


@shows("Network.num_blocks")
def test_num_blocks() -> None:
    made = build(num_blocks=3, channel_mult=[1])
    assert list(blocks(made)) == ["8x8_block0", "8x8_block1", "8x8_block2"]
    assert (
        len(blocks(made, "dec")) == len(blocks(build(num_blocks=1, channel_mult=[1]), "dec")) + 2
    )


@shows("Network.attn_resolutions")
@pytest.mark.parametrize("sides", [[], [8], [4], [8, 4]])
def test_attn_resolutions(sides: list[int]) -> None:
    made = blocks(build(attn_resolutions=sides))
    attending = {name for name, block in made.items() if block.heads}
    assert attending == {f"{side}x{side}_block0" for side in sides}


@shows("Network.dropout")
def test_dropout() -> None:
    x, sigma, labels = torch.ones(1, 1, 8, 8), torch.ones(1), torch.zeros(1, 3)

    def differ(network: RawNetwork) -> bool:
        for value in network.parameters():
            nn.init.normal_(value, std=0.1)
        return not torch.equal(network(x, sigma, None, labels), network(x, sigma, None, labels))

    assert {block.dropout for block in blocks(build(dropout=0.3)).values()} == {0.3}
    assert differ(build(dropout=0.3).train())
    assert not differ(build(dropout=0.3).eval())
    assert not differ(build(dropout=0.0).train())


@shows("Network.channel_mult_emb")
@pytest.mark.parametrize("mult", [1, 3])
def test_channel_mult_emb(mult: int) -> None:
    assert blocks(build(channel_mult_emb=mult))["8x8_block0"].affine.in_features == 8 * mult


@shows("Network.resample_filter")
@pytest.mark.parametrize("taps", [[1.0, 1.0], [1.0, 3.0, 3.0, 1.0]])
def test_resample_filter(taps: list[float]) -> None:
    # A down block averages with the square of the normalised taps.
    made = blocks(build(resample_filter=taps))["4x4_down"].skip
    assert isinstance(made, Conv2d)
    nn.init.dirac_(made.weight)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    image = torch.zeros(1, 8, 8, 8)
    image[0, 0, 4, 4] = 1.0
    weights = torch.tensor(taps) / sum(taps)
    near = weights[weights.argmax()] ** 2
    assert made(image).max().item() == pytest.approx(near.item())
    assert int((made(image) != 0).sum()) == (len(taps) // 2) ** 2


@shows("Network.augment_dim")
def test_augment_dim() -> None:
    parts: Any = build(augment_dim=9)
    assert parts.map_augment.in_features == 9
    for without in (build(), build(time_s=True, augment_dim=9)):  # students have none
        assert getattr(without, "map_augment", None) is None


def heads(**keys: int) -> list[int]:
    made = build(architecture="openai_adm", model_channels=32, attn_resolutions=[8, 4], **keys)
    return [m.heads for m in made.modules() if type(m).__name__ == "AttentionBlock"]  # type: ignore[misc]


@shows("Network.num_heads", "Network.num_head_channels")
def test_attention_heads() -> None:
    assert set(heads(num_heads=2)) == {2}
    # 32 channels at the first level, 64 at the second.
    assert set(heads(num_head_channels=16)) == {2, 4}
    assert set(heads(num_head_channels=32)) == {1, 2}


# -- the process ----------------------------------------------------------------------------------


def trajectory(**keys: float) -> Trajectory:
    torch.manual_seed(0)
    return weight_file.build_model(
        network=config.Network.model_validate(SMALL),
        diffusion=config.Diffusion(**keys),
        resolution=8,
        channels=1,
        label_dim=0,
        time_s=True,
    )


def levels(section: config.Diffusion, n: int) -> list[float]:
    """EDM's grid, written down once more."""
    a, b = section.sigma_max ** (1 / section.rho), section.sigma_min ** (1 / section.rho)
    return [(a + i / (n - 1) * (b - a)) ** section.rho for i in range(n)]


@shows("Diffusion.sigma_min", "Diffusion.sigma_max", "Diffusion.rho", "Experiment.diffusion")
@pytest.mark.parametrize("keys", [{}, {"sigma_min": 0.01}, {"sigma_max": 40.0}, {"rho": 3.0}])
def test_levels(keys: dict[str, float]) -> None:
    section = config.Diffusion.model_validate(keys)
    grid = sampling.grid_of(section.model_dump())
    plan = sampling.plan("gamma", 4, 0.0, **grid)
    assert plan.t.tolist() == pytest.approx(levels(section, 5)[:-1])
    assert plan.s[-1].item() == pytest.approx(section.sigma_min)


@shows("Diffusion.sigma_max")
def test_samples_begin_at_sigma_max(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Tensor] = []

    def jump(self: Trajectory, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        begun.append(x)
        return x

    monkeypatch.setattr(Trajectory, "G", jump)
    for sigma_max in (80.0, 40.0):
        record = {
            "diffusion": config.Diffusion(sigma_max=sigma_max).model_dump(), "channels": 1,
            "resolution": 8, "label_dim": 0, "time_s": True,
        }  # fmt: skip
        Generator(trajectory(), record).images(2, sampler="gamma", nfe=1, gamma=None, seed=0)
    assert torch.allclose(begun[0], 2 * begun[1])


@shows("Diffusion.sigma_data")
def test_sigma_data() -> None:
    x, t = torch.ones(1, 1, 8, 8), torch.full((1,), 2.0)
    for sigma_data in (0.5, 1.0):
        made = trajectory(sigma_data=sigma_data)
        skip, out = (
            sigma_data**2 / (4 + sigma_data**2),
            2 * sigma_data / (4 + sigma_data**2) ** 0.5,
        )
        raw = torch.full_like(x, 3.0)
        assert torch.allclose(made.inner(raw, x, t.view(-1, 1, 1, 1)), skip * x + out * raw)
