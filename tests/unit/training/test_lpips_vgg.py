"""LPIPS against the original package on a random trunk, and the files it reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from fixtures.distances import Images, crop, noise
from torch import nn

from ctm_core import config
from ctm_core.config import asset_listing
from ctm_core.data import assets
from ctm_core.models import torchvision_shim
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training import distances
from ctm_core.training.distances.lpips_vgg import LpipsVgg


@pytest.fixture(scope="module")
def package() -> nn.Module:
    """LPIPS 0.1 of the package ``lpips``: its own linear weights on a random trunk."""
    torchvision_shim.apply()
    import lpips

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False)


@pytest.fixture(scope="module")
def files(package: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trunk's file as torchvision names its tensors, and the package's own file."""
    trunk = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    slices = (getattr(package.net, f"slice{n}") for n in range(1, 6))
    state = {
        f"features.{place}.{leaf}": getattr(layer, leaf).data
        for stage in slices
        for place, layer in stage.named_children()
        if isinstance(layer, nn.Conv2d)
        for leaf in ("weight", "bias")
    }
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, trunk)
    import lpips

    return {"trunk": trunk, "heads": Path(lpips.__file__).parent / "weights/v0.1/vgg.pth"}


@pytest.fixture(scope="module")
def lpips_max(files: dict[str, Path]) -> LpipsVgg:
    distance = LpipsVgg(resize=64, pooling="max")
    distance.load(**files)
    return distance


def test_lpips_with_max_pooling_agrees_with_the_package(
    package: nn.Module, lpips_max: LpipsVgg, photographs: Images
) -> None:
    a, b = (
        1.5 * crop(photographs["china"], 100, 200, 64),
        crop(photographs["flower"], 100, 200, 64),
    )
    torch.testing.assert_close(lpips_max(a, b), package(a, b).flatten(), rtol=1e-5, atol=0)
    large = crop(photographs["china"], 0, 0, 256), crop(photographs["flower"], 0, 0, 256)
    torch.testing.assert_close(
        lpips_max(*large), package(*large).flatten(), rtol=1e-5, atol=0
    )  # no resizing


def test_lpips_resizes_small_images_without_clamping(
    lpips_max: LpipsVgg, photographs: Images
) -> None:
    a, b = (1.5 * crop(photographs[name], 100, 200, 32) for name in ("china", "flower"))
    enlarged = (
        nn.functional.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)
        for x in (a, b)
    )
    assert torch.equal(lpips_max(a, b), lpips_max(*enlarged))
    assert not torch.equal(lpips_max(a, b), lpips_max(a.clamp(-1, 1), b))


def test_lpips_pooling_is_a_choice(
    files: dict[str, Path], lpips_max: LpipsVgg, photographs: Images
) -> None:
    released = LpipsVgg(resize=64)
    released.load(**files)
    assert sum(isinstance(m, nn.AvgPool2d) for m in released.modules()) == 4
    assert sum(isinstance(m, nn.MaxPool2d) for m in lpips_max.modules()) == 4
    a, b = (crop(photographs[name], 100, 200, 64) for name in ("china", "flower"))
    assert released(a, b).item() != pytest.approx(lpips_max(a, b).item(), rel=1e-3)


def test_lpips_gradient_and_bf16(lpips_max: LpipsVgg, photographs: Images) -> None:
    a = crop(photographs["china"], 100, 200, 64)[:, :1].clone().requires_grad_()
    b = crop(photographs["flower"], 100, 200, 64)[:, :1]
    exact = lpips_max(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        last = (x.to(memory_format=torch.channels_last) for x in (a, b))
        rounded = lpips_max(*last)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    rounded.sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert a.grad.norm() > 0
    assert all(p.grad is None for p in lpips_max.parameters())


def test_lpips_gradient_is_finite_where_all_features_vanish(files: dict[str, Path]) -> None:
    distance = LpipsVgg(resize=32)
    distance.load(**files)
    for name, parameter in distance.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(-1e4)
    a = noise(1, 3, 32, 32, seed=1).requires_grad_()
    value = distance(a, noise(1, 3, 32, 32, seed=2))
    value.sum().backward()
    assert value.item() == 0.0
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_lpips_hashes_its_files(lpips_max: LpipsVgg, files: dict[str, Path]) -> None:
    hashes = f"{sha256_file(files['trunk'])};{sha256_file(files['heads'])}"
    assert lpips_max.weights_sha256 == hashes


@pytest.mark.parametrize("damage", ["text", "other tensors", "other shapes", "pickle"])
def test_lpips_refuses_other_files(damage: str, files: dict[str, Path], tmp_path: Path) -> None:
    trunk = tmp_path / "vgg16.pth"
    if damage == "text":
        trunk.write_text("no tensors here")
    elif damage == "pickle":
        trunk.write_bytes(pickle.dumps({"features.0.weight": print}))
    else:
        state = torch.load(files["trunk"], weights_only=True)
        if damage == "other tensors":
            state.pop("features.28.bias")
        else:
            state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
        torch.save(state, trunk)
    with pytest.raises(UserError) as caught:
        LpipsVgg(resize=32).load(trunk, files["heads"])
    assert str(trunk) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lpips_is_built_from_external_files(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    section = config.Perceptual(resize=64, pooling="max")
    with pytest.raises(UserError) as caught:
        distances.build_distance("lpips_vgg", section)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("download.pytorch.org", "397923af", str(tmp_path / "vgg16-397923af.pth")):
        assert part in message
    (tmp_path / "vgg16-397923af.pth").write_bytes(files["trunk"].read_bytes())
    with pytest.raises(UserError, match=r"expected SHA-256 397923af"):
        distances.build_distance("lpips_vgg", section)
    known = assets.load()
    other = known["vgg16"].model_copy(update={"hash": f"sha256:{sha256_file(files['trunk'])}"})
    monkeypatch.setattr(asset_listing, "load", lambda: known | {"vgg16": other})
    for pooling, layer in ((None, nn.AvgPool2d), ("average", nn.AvgPool2d), ("max", nn.MaxPool2d)):
        section = config.Perceptual(resize=64, pooling=pooling)
        built = distances.build_distance("lpips_vgg", section)
        assert sum(isinstance(module, layer) for module in built.modules()) == 4
        assert isinstance(built, LpipsVgg)
        assert built.resize == 64
