"""Distances of the consistency loss against closed forms and the original ST-LPIPS."""

from __future__ import annotations

import importlib.metadata
import math
import pickle
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from ctm_core import config
from ctm_core.config import asset_listing
from ctm_core.config.distance_traits import distances as names
from ctm_core.data import assets
from ctm_core.models import torchvision_shim
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training import distances
from ctm_core.training.distance import Distance
from ctm_core.training.distances.lpips_vgg import LpipsVgg

Images = dict[str, Tensor]


def build(name: str, resize: int | None = None) -> Distance:
    section = None if resize is None else config.Perceptual(resize=resize)
    return distances.build_distance(name, section)


@pytest.fixture(scope="module")
def perceptual32() -> Distance:
    return build("stlpips_vgg", 32)


@pytest.fixture(scope="module")
def images() -> Images:
    """scikit-learn's two photographs, shape (1, 3, 427, 640), float32 in [-1, 1]."""
    return {
        name: torch.from_numpy(load_sample_image(f"{name}.jpg").copy())
        .permute(2, 0, 1)[None]
        .float()
        .div(127.5)
        .sub(1)
        for name in ("china", "flower")
    }


def crop(image: Tensor, top: int, left: int, side: int) -> Tensor:
    return image[:, :, top : top + side, left : left + side]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The right-hand column was computed once with the package's own code, in float64:
# stlpips_pytorch 0.0.2, stlpips.LPIPS(net="vgg", variant="shift_tolerant").double()(a, b), IPython
# replaced by an empty module, on exactly these crops; where `resize` differs from their side they
# were first resized by torch.nn.functional.interpolate(mode="bilinear", align_corners=False), and
# the grey one was repeated to three channels.
REFERENCE: list[tuple[str, int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], float]] = [
    ("china-flower", 64, lambda c, f: (crop(c, 100, 200, 64), crop(f, 100, 200, 64)), 0.755735109),
    ("shifted", 64, lambda c, f: (crop(c, 100, 200, 64), crop(c, 100, 203, 64)), 0.032092359),
    (
        "contrast",
        64,
        lambda c, f: (crop(c, 100, 200, 64), 0.7 * crop(c, 100, 200, 64)),
        0.124128437,
    ),
    ("odd-side", 33, lambda c, f: (crop(c, 150, 300, 33), crop(f, 150, 300, 33)), 0.607165423),
    ("enlarged", 64, lambda c, f: (crop(c, 100, 200, 32), crop(f, 100, 200, 32)), 0.503150932),
    ("reduced", 128, lambda c, f: (c, f), 0.659453421),
    (
        "grey",
        32,
        lambda c, f: (crop(c, 100, 200, 32)[:, :1], crop(f, 100, 200, 32)[:, :1]),
        0.487084272,
    ),
    (
        "unclamped",
        96,
        lambda c, f: (1.5 * crop(c, 0, 0, 96), 1.5 * crop(f, 100, 100, 96)),
        0.634134612,
    ),
]


@pytest.mark.parametrize(
    ("case", "resize", "pair", "value"), REFERENCE, ids=[r[0] for r in REFERENCE]
)
def test_stlpips_agrees_with_the_package(
    case: str,
    resize: int,
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    value: float,
    images: Images,
) -> None:
    a, b = pair(images["china"], images["flower"])
    measured = build("stlpips_vgg", resize)(a, b)
    assert measured.shape == (1,)
    assert measured.item() == pytest.approx(value, abs=1e-4)


def test_stlpips_grows_with_noise(perceptual32: Distance, images: Images) -> None:
    image = crop(images["china"], 100, 200, 32)
    distances = [
        perceptual32(image, image + level * noise(*image.shape)).item()
        for level in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert distances[0] == 0.0
    assert distances == sorted(distances)
    assert distances[-1] > 4 * distances[1] > 0


@pytest.mark.parametrize("name", ["l2", "pseudo_huber", "stlpips_vgg"])
def test_one_value_a_sample(name: str, perceptual32: Distance) -> None:
    distance = perceptual32 if name == "stlpips_vgg" else build(name)
    a, b = noise(3, 3, 32, 32, seed=1), noise(3, 3, 32, 32, seed=2)
    values = distance(a, b)
    assert values.shape == (3,)
    alone = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=1e-5, atol=1e-7)
    assert torch.equal(distance(a, a), torch.zeros(3))
    torch.testing.assert_close(values, distance(b, a), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["l2", "pseudo_huber", "stlpips_vgg"])
def test_gradient_reaches_the_input_alone(name: str, perceptual32: Distance) -> None:
    distance = perceptual32 if name == "stlpips_vgg" else build(name)
    a, b = noise(2, 1, 32, 32, seed=1).requires_grad_(), noise(2, 1, 32, 32, seed=2)
    distance(a, b).sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert (a.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())


def test_mode_changes_nothing(perceptual32: Distance) -> None:
    assert not perceptual32.training
    a, b = noise(2, 1, 32, 32, seed=1), noise(2, 1, 32, 32, seed=2)
    evaluated = perceptual32(a, b)
    try:
        assert torch.equal(perceptual32.train()(a, b), evaluated)
    finally:
        perceptual32.eval()


def test_stlpips_gradient_is_the_directional_derivative() -> None:
    distance = build("stlpips_vgg", 32).double()
    a = noise(1, 3, 32, 32, seed=1).double().mul(0.3).requires_grad_()
    b = noise(1, 3, 32, 32, seed=2).double().mul(0.3)
    direction = noise(1, 3, 32, 32, seed=3).double()
    value = distance(a, b).sum()
    assert value.dtype == torch.float64
    (gradient,) = torch.autograd.grad(value, a)
    step = 1e-6
    with torch.no_grad():
        ahead = distance(a + step * direction, b).item()
        behind = distance(a - step * direction, b).item()
    slope = (ahead - behind) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4)


def test_stlpips_gradient_is_finite_where_all_features_vanish() -> None:
    distance = build("stlpips_vgg", 32)
    for name, parameter in distance.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(-1e4)
    a = noise(1, 3, 32, 32, seed=1).requires_grad_()
    value = distance(a, noise(1, 3, 32, 32, seed=2))
    value.sum().backward()
    assert value.item() == 0.0
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_l2_is_the_mean_square() -> None:
    a, b = noise(2, 3, 4, 5, seed=1).double(), noise(2, 3, 4, 5, seed=2).double()
    expected = torch.stack([((a[i] - b[i]) ** 2).sum() / 60 for i in range(2)])
    torch.testing.assert_close(build("l2")(a, b), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 1e-2, 3.0])
def test_pseudo_huber_closed_form(size: float) -> None:
    elements = 3 * 8 * 8
    a = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    c = 0.00054 * math.sqrt(elements)
    squared = elements * size**2
    expected = math.hypot(math.sqrt(squared), c) - c
    measured = build("pseudo_huber")(a, a + size)
    # The textbook form on the right loses digits to cancellation, ours must not.
    assert measured.item() == pytest.approx(expected, rel=1e-9, abs=2e-16)
    single = build("pseudo_huber")(a.float(), a.float() + size)
    assert single.item() == pytest.approx(measured.item(), rel=1e-5)


def test_pseudo_huber_has_a_finite_gradient_at_zero() -> None:
    a = torch.zeros(1, 1, 8, 8, requires_grad=True)
    build("pseudo_huber")(a, torch.zeros(1, 1, 8, 8)).sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_one_channel_is_repeated(perceptual32: Distance) -> None:
    a, b = noise(2, 1, 8, 8, seed=1), noise(2, 1, 8, 8, seed=2)
    repeated = perceptual32(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1))
    torch.testing.assert_close(perceptual32(a, b), repeated, rtol=1e-6, atol=0)


def test_other_channel_counts_are_refused(perceptual32: Distance) -> None:
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        perceptual32(noise(1, 4, 32, 32), noise(1, 4, 32, 32))


def test_other_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="distance between shapes"):
        build("l2")(noise(2, 1, 8, 8), noise(1, 1, 8, 8))


@pytest.mark.parametrize("name", ["l2", "pseudo_huber", "stlpips_vgg"])
def test_bf16_autocast_stays_close(name: str, perceptual32: Distance, images: Images) -> None:
    distance = perceptual32 if name == "stlpips_vgg" else build(name)
    a = crop(images["china"], 100, 200, 32).clone().requires_grad_()
    b = crop(images["flower"], 100, 200, 32)
    exact = distance(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = distance(a, b)
        from_bf16 = distance(a.to(torch.bfloat16), b.to(torch.bfloat16))
    rounded.sum().backward()
    assert rounded.dtype == from_bf16.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(from_bf16, exact, rtol=2e-2, atol=0)
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_resize_is_checked_by_the_config() -> None:
    training = config.Training(steps=1, batch_size=1)
    with pytest.raises(ValidationError, match="equal to 32"):
        config.Perceptual(resize=31)
    with pytest.raises(ValidationError, match=r"needs perceptual\.resize"):
        config.Student(distance="stlpips_vgg", training=training)
    with pytest.raises(ValidationError, match=r"lpips_vgg needs perceptual\.resize"):
        config.Student(distance="lpips_vgg", training=training)
    with pytest.raises(ValidationError, match="pooling cannot be chosen for"):
        section = config.Perceptual(resize=32, pooling="max")
        config.Student(distance="stlpips_vgg", perceptual=section, training=training)
    config.Student(distance="lpips_vgg", perceptual=section, training=training)
    with pytest.raises(ValidationError, match="belongs to perceptual distances"):
        config.Student(perceptual=config.Perceptual(resize=32), training=training)


def test_names_and_hashes(perceptual32: Distance) -> None:
    assert names() == ["l2", "lpips_vgg", "pseudo_huber", "stlpips_vgg"]
    assert build("l2").weights_sha256 is None and build("pseudo_huber").weights_sha256 is None
    assert perceptual32.weights_sha256 == sha256_file(assets.require("stlpips-vgg"))
    with pytest.raises(UserError, match="no distance 'l3'; there are: l2, lpips_vgg"):
        distances.find("l3")


def test_building_imports_no_foreign_code_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    build("stlpips_vgg", 32)
    assert torch.equal(torch.get_rng_state(), before)
    assert "stlpips_pytorch" not in sys.modules


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError) as caught:
        build("stlpips_vgg", 32)
    message = str(caught.value)
    assert "\n" not in message and "install the Python package stlpips-pytorch" in message


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    corrupt = tmp_path / "vgg_shift_tolerant.pth"
    content = bytearray(assets.require("stlpips-vgg").read_bytes())
    content[-1] ^= 1
    corrupt.write_bytes(content)
    monkeypatch.setattr(type(assets.load()["stlpips-vgg"]), "path", lambda *_: corrupt)
    with pytest.raises(UserError) as caught:
        build("stlpips_vgg", 32)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(corrupt), sha256_file(corrupt), "44597da68f49c183"):
        assert part in message


# -- LPIPS ----------------------------------------------------------------------------------------


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
    package: nn.Module, lpips_max: LpipsVgg, images: Images
) -> None:
    a, b = 1.5 * crop(images["china"], 100, 200, 64), crop(images["flower"], 100, 200, 64)
    torch.testing.assert_close(lpips_max(a, b), package(a, b).flatten(), rtol=1e-5, atol=0)
    large = crop(images["china"], 0, 0, 256), crop(images["flower"], 0, 0, 256)
    torch.testing.assert_close(
        lpips_max(*large), package(*large).flatten(), rtol=1e-5, atol=0
    )  # no resizing


def test_lpips_resizes_small_images_without_clamping(lpips_max: LpipsVgg, images: Images) -> None:
    a, b = (1.5 * crop(images[name], 100, 200, 32) for name in ("china", "flower"))
    enlarged = (
        nn.functional.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)
        for x in (a, b)
    )
    assert torch.equal(lpips_max(a, b), lpips_max(*enlarged))
    assert not torch.equal(lpips_max(a, b), lpips_max(a.clamp(-1, 1), b))


def test_lpips_pooling_is_a_choice(
    files: dict[str, Path], lpips_max: LpipsVgg, images: Images
) -> None:
    released = LpipsVgg(resize=64)
    released.load(**files)
    assert sum(isinstance(m, nn.AvgPool2d) for m in released.modules()) == 4
    assert sum(isinstance(m, nn.MaxPool2d) for m in lpips_max.modules()) == 4
    a, b = (crop(images[name], 100, 200, 64) for name in ("china", "flower"))
    assert released(a, b).item() != pytest.approx(lpips_max(a, b).item(), rel=1e-3)


def test_lpips_gradient_and_bf16(lpips_max: LpipsVgg, images: Images) -> None:
    a = crop(images["china"], 100, 200, 64)[:, :1].clone().requires_grad_()
    b = crop(images["flower"], 100, 200, 64)[:, :1]
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
