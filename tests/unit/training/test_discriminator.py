"""The projected discriminator: its layers, its frozen parts, its heads, and what it refuses."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from ctm_core import config
from ctm_core.config.gan import down_blocks
from ctm_core.diffusion import randomness
from ctm_core.models import torchvision_shim
from ctm_core.models.features import efficientnet_lite0
from ctm_core.runtime.errors import UserError
from ctm_core.training.discriminator import (
    Discriminator,
    backbones,
    diffaugment,
)
from ctm_core.training.discriminator.projected_layers import (
    Conv2d,
    ConvTranspose2d,
    SpectralConv2d,
    initialise,
)
from ctm_core.training.discriminator.projection import ScaleMixing

LITE0 = "tf_efficientnet_lite0"
DEIT = "deit_base_distilled_patch16_224"


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(*names: str, seed: int = 0, **given: Any) -> Discriminator:
    section = config.Discriminator(
        backbones=names or ("tiny",), **({"resolution": 64, "width": 4} | given)
    )
    return Discriminator(section, seed)


@pytest.fixture(scope="module")
def lite0() -> Discriminator:
    """Lite0 with its real weights and narrow heads, at 64 pixels."""
    return build(LITE0)


# -- layers ---------------------------------------------------------------------------------------


def spectral_pair() -> tuple[SpectralConv2d, nn.Conv2d]:
    """Ours and torch's, with equal weights and vectors, in float64."""
    ours = SpectralConv2d(3, 5, 4, stride=2, padding=1)
    initialise(ours, 3, "test")
    ours = ours.double()
    theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 4, stride=2, padding=1)).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_spectral_norm_is_torchs() -> None:
    ours, theirs = spectral_pair()
    for step in range(4):
        if step == 3:
            ours.eval()
            theirs.eval()
        x = noise(2, 3, 8, 8, seed=step, dtype=torch.float64)
        for layer in (ours, theirs):
            layer.zero_grad()
            layer(x).square().sum().backward()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=0)
        for name, parameter in theirs.named_parameters():
            expected, found = parameter.grad, ours.get_parameter(name).grad
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


def test_spectral_norm_reaches_one_and_stands_still_in_eval() -> None:
    layer, _ = spectral_pair()
    x = noise(1, 3, 8, 8, dtype=torch.float64)
    for _ in range(200):
        layer(x)
    largest = torch.linalg.matrix_norm(layer.normalised_weight().flatten(1), ord=2)
    assert float(largest.detach()) == pytest.approx(1, abs=1e-6)
    before = copy.deepcopy(layer.eval().state_dict())
    layer(x)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_two_forward_passes_before_one_backward() -> None:
    layer, _ = spectral_pair()
    total = layer(noise(1, 3, 8, 8, dtype=torch.float64)).sum()
    total = total + layer(noise(1, 3, 8, 8, seed=1, dtype=torch.float64)).sum()
    total.backward()
    assert layer.weight_orig.grad is not None


def test_spectral_norm_is_taken_in_full_precision() -> None:
    layer = SpectralConv2d(3, 5, 4)
    initialise(layer, 3, "test")
    layer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.normalised_weight()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, layer.normalised_weight())


def test_starting_values_follow_torchs_law() -> None:
    for layer, fan in (
        (Conv2d(8, 16, 5), 200),
        (ConvTranspose2d(16, 8, 5), 200),
        (SpectralConv2d(8, 16, 5), 200),
    ):
        initialise(layer, 1, "test")
        for name, parameter in layer.named_parameters():
            law = stats.uniform(-1 / math.sqrt(fan), 2 / math.sqrt(fan)).cdf
            values = parameter.detach().flatten().numpy()
            assert stats.kstest(values, law).pvalue > 1e-4, name
    for vector in (layer.weight_u, layer.weight_v):
        assert float(vector.norm()) == pytest.approx(1, abs=1e-6)


def test_mixing_before_doubling_is_mixing_after_it() -> None:
    mixing = ScaleMixing(6, 4).double()
    initialise(mixing, 0, "test")
    x = noise(2, 6, 5, 5, dtype=torch.float64)
    doubled = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    published = mixing.out_conv(doubled)
    torch.testing.assert_close(mixing(x), published, rtol=1e-12, atol=1e-12)


# -- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "logits"), [(64, 1), (96, 9), (128, 1), (160, 4), (192, 9), (224, 16)]
)
def test_logits_by_resolution(resolution: int, logits: int) -> None:
    model = build(resolution=resolution, width=2)
    assert model(noise(2, 3, 16, 16)).shape == (2, 4 * logits)
    downs = [len(head.main) - 1 for head in model.branches()["tiny"].mini_discs.values()]
    assert downs == ([4, 3, 2, 1] if resolution >= 128 else [3, 2, 1, 0])


@pytest.mark.parametrize("resolution", [0, 32, 63, 72, 100, 225])
def test_other_resolutions_are_refused(resolution: int) -> None:
    with pytest.raises(ValidationError, match="multiple of 32"):
        config.Discriminator(resolution=resolution)
    with pytest.raises(ValueError, match="multiple of 32"):
        down_blocks(resolution)


def test_starting_values_are_the_seeds() -> None:
    before = torch.get_rng_state()
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        drawn = name.endswith(("weight_orig", "weight_v", "ccm.weight", "out_conv.bias"))
        assert not drawn or not torch.equal(value, other.state_dict()[name]), name


def test_a_branch_does_not_depend_on_its_neighbours(lite0: Discriminator) -> None:
    both = build("tiny", LITE0).state_dict()
    assert all(torch.equal(both[name], value) for name, value in build().state_dict().items())
    alone = lite0.state_dict()
    frozen = [name for name in alone if ".projection." in name]
    assert frozen
    assert all(torch.equal(both[name], alone[name]) for name in frozen)


def test_heads_train_and_nothing_else_does(lite0: Discriminator) -> None:
    trained = {id(p) for p in lite0.trained()}
    for name, parameter in lite0.named_parameters():
        assert (id(parameter) in trained) == (".mini_discs." in name), name
    assert not any("trunk" in name or "blocks" in name for name in lite0.state_dict())
    for name in ("projection.layer0_ccm.weight", "projection.layer3_csm.out_conv.bias"):
        assert f"{LITE0}.{name}" in lite0.state_dict()
    assert "tiny.backbone.stages.0.weight" in build().state_dict()


def test_the_pretrained_network_stays_in_eval_mode(lite0: Discriminator) -> None:
    trunk = lite0.branches()[LITE0].backbone.trunk
    assert trunk is not None
    before = copy.deepcopy(trunk.state_dict())
    lite0.train()
    lite0(noise(2, 3, 16, 16))
    assert not any(module.training for module in trunk.modules())
    assert all(torch.equal(before[name], value) for name, value in trunk.state_dict().items())
    assert not any(p.requires_grad for p in trunk.parameters())


def test_the_pretrained_network_moves_along() -> None:
    model = build(LITE0).double()
    trunk = model.branches()[LITE0].backbone.trunk
    assert trunk is not None
    assert all(p.dtype == torch.float64 for p in trunk.parameters())
    assert model(noise(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    twin = copy.deepcopy(model).eval()
    x = noise(1, 3, 8, 8, seed=1, dtype=torch.float64)
    assert torch.equal(twin(x), model.eval()(x))


def test_state_restores_logits() -> None:
    model, other = build(seed=1), build(seed=2)
    for step in range(3):
        model(noise(4, 3, 16, 16, seed=step))
    other.load_state_dict(model.state_dict())
    x = noise(4, 3, 16, 16, seed=9)
    # In train mode too: the power iteration goes on from the same vectors.
    assert torch.equal(model(x), other(x))
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_gradient_passes_to_the_images() -> None:
    model = build().double().eval()
    x = noise(1, 3, 6, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(model, (x,), atol=1e-6)


def test_no_graph_behind_images_without_gradient() -> None:
    model = build()
    assert not model.branches()["tiny"].pyramid(noise(2, 3, 8, 8))[0].requires_grad
    model(noise(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.trained())


def test_grey_is_repeated_and_other_channels_refused() -> None:
    model = build().eval()
    x = noise(2, 1, 16, 16)
    drawn = model.draw(partial(_uniform, 2), (16, 16), "real")
    torch.testing.assert_close(model(x, drawn), model(x.repeat(1, 3, 1, 1), drawn))
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        model(noise(2, 4, 16, 16))


def test_each_branch_augments_by_draws_of_its_own() -> None:
    model = build("tiny", LITE0).eval()
    drawn = model.draw(partial(_uniform, 3), (16, 16), "fake")
    assert list(drawn) == ["tiny", LITE0]
    assert not torch.equal(drawn["tiny"].brightness, drawn[LITE0].brightness)
    x = noise(3, 3, 16, 16)
    parts = [
        branch(diffaugment.diffaugment(x, drawn[name]))
        for name, branch in model.branches().items()
    ]
    assert torch.equal(model(x, drawn), torch.cat(parts, dim=1))
    assert not torch.equal(model(x, drawn), model(x))


def test_input_is_normalised_before_it_is_resized(lite0: Discriminator) -> None:
    backbone = lite0.branches()[LITE0].backbone
    seen: list[Tensor] = []
    backbone.maps = lambda x: seen.append(x) or []  # type: ignore[assignment, method-assign, func-returns-value]
    x = noise(2, 3, 16, 16)
    try:
        backbone(x, 64)
    finally:
        del backbone.maps
    # Mean and deviation 1/2 undo (x + 1)/2.
    enlarged = functional.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], enlarged, rtol=1e-5, atol=1e-6)


def test_bf16_and_channels_last(lite0: Discriminator) -> None:
    lite0.eval()
    x = noise(2, 3, 32, 32).requires_grad_()
    branch = lite0.branches()[LITE0]
    exact = [feature.detach() for feature in branch.pyramid(x)]
    with torch.autocast("cpu", torch.bfloat16):
        last = x.to(memory_format=torch.channels_last)
        rounded = branch.pyramid(last)
        logits = lite0(last)
    # bf16 keeps 8 bits; rounding grows with depth, to 4% of the norm behind Lite0's last stage.
    for ours, theirs in zip(rounded, exact, strict=True):
        assert float((ours.detach() - theirs).norm() / theirs.norm()) < 0.06
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.norm() > 0


# -- the published heads --------------------------------------------------------------------------


def test_heads_load_alone() -> None:
    model, other = build(seed=1), build(seed=2)
    published = {n: v for n, v in other.state_dict().items() if n.startswith("tiny.mini_discs.")}
    before = copy.deepcopy(model.state_dict())
    model.load_heads(published)
    for name, value in model.state_dict().items():
        expected = published.get(name, before[name])
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("damage", ["lacks", "foreign", "another shape"])
def test_other_heads_are_refused(damage: str) -> None:
    model = build()
    state = {n: v for n, v in model.state_dict().items() if ".mini_discs." in n}
    name = "tiny.mini_discs.2.main.1.weight_orig"
    if damage == "lacks":
        del state[name]
    elif damage == "foreign":
        name = "clip.mini_discs.0"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(2, 2)
    with pytest.raises(UserError, match=f"{damage}.*{name}"):
        model.load_heads(state)


# -- feature networks -----------------------------------------------------------------------------


def test_lite0_maps_are_those_of_the_whole_network(lite0: Discriminator) -> None:
    network: Any = efficientnet_lite0.load_network()
    backbone = lite0.branches()[LITE0].backbone
    assert backbone.weights_sha256 == efficientnet_lite0.SHA256
    x = noise(2, 3, 64, 64)
    with torch.no_grad():
        maps = backbone.maps(x)
        pooled = network.global_pool(network.bn2(network.conv_head(maps[-1])))
        torch.testing.assert_close(pooled, network(x), rtol=1e-5, atol=1e-5)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
        (320, 2, 2),
    ]


@pytest.fixture(scope="module")
def small_deit() -> Any:
    """timm's smallest distilled DeiT stands in for the base size: at 64 pixels, random weights."""
    torchvision_shim.apply()
    import timm

    return partial(timm.create_model, "deit_tiny_distilled_patch16_224", pretrained=False)


def test_deit_maps_are_blocks_without_class_tokens(small_deit: Any) -> None:
    network = small_deit(img_size=64).eval()
    backbone = backbones.Deit(network)
    initialise(backbone, 0, "test")
    taken: list[Tensor] = []
    hooks = [
        network.blocks[n].register_forward_hook(lambda _, __, out: taken.append(out))
        for n in (2, 5, 8, 11)
    ]
    x = noise(2, 3, 64, 64)
    maps = backbone.maps(x)
    for hook in hooks:
        hook.remove()
    assert [tuple(m.shape[1:]) for m in maps] == [
        (96, 16, 16),
        (192, 8, 8),
        (384, 4, 4),
        (768, 2, 2),
    ]
    # The third map is one convolution of the grid of tokens, row by row.
    grid = taken[2][:, 2:].mT.reshape(2, -1, 4, 4)
    torch.testing.assert_close(maps[2], backbone.layer3(grid))
    assert not any(name.startswith("trunk") for name in backbone.state_dict())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_deit_loads_its_publishers_file_at_another_size(small_deit: Any, tmp_path: Path) -> None:
    source = small_deit()
    path = tmp_path / "deit.pth"
    torch.save({"model": source.state_dict()}, path)
    same, smaller = small_deit(), small_deit(img_size=64)
    backbones.load_deit(same, path)
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in same.state_dict().items())
    backbones.load_deit(smaller, path)
    assert smaller.pos_embed.shape == (1, 2 + 16, 192)
    assert torch.equal(smaller.pos_embed[:, :2], source.pos_embed[:, :2])
    assert torch.equal(smaller.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    torch.save({"model": {"pos_embed": source.pos_embed.data}}, path)
    with pytest.raises(UserError, match="not deit_base_distilled"):
        backbones.load_deit(same, path)
    path.write_text("nothing")
    with pytest.raises(UserError, match="not deit_base_distilled"):
        backbones.load_deit(same, path)


def test_missing_or_other_deit_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    # Building 86 million random weights would take longer than the refusal it precedes.
    with torch.device("meta"):
        with pytest.raises(UserError) as caught:
            backbones.build_backbone(DEIT, 64)
        message = str(caught.value)
        assert "\n" not in message
        for part in ("df68dfff", "https://dl.fbaipublicfiles.com", str(tmp_path)):
            assert part in message
        (tmp_path / "deit_base_distilled_patch16_224-df68dfff.pth").write_bytes(b"another")
        with pytest.raises(UserError, match="expected SHA-256 df68dfff"):
            backbones.build_backbone(DEIT, 64)


def test_names() -> None:
    assert config.Discriminator().backbones == (DEIT, LITE0)
    assert build().branches()["tiny"].backbone.weights_sha256 is None
    with pytest.raises(ValidationError, match="duplicate backbone"):
        config.Discriminator(backbones=("tiny", "tiny"))


def _uniform(count: int, stream: str) -> Tensor:
    return randomness.uniform(7, stream, 3, 0, count)
