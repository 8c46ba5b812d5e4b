"""ST-LPIPS against values of the original package, and its gradient."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.distances import Images, build, crop, noise
from torch import Tensor

from ctm_core.data import assets
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training.distance import Distance

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
    photographs: Images,
) -> None:
    a, b = pair(photographs["china"], photographs["flower"])
    measured = build("stlpips_vgg", resize)(a, b)
    assert measured.shape == (1,)
    assert measured.item() == pytest.approx(value, abs=1e-4)


def test_stlpips_grows_with_noise(perceptual32: Distance, photographs: Images) -> None:
    image = crop(photographs["china"], 100, 200, 32)
    distances = [
        perceptual32(image, image + level * noise(*image.shape)).item()
        for level in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert distances[0] == 0.0
    assert distances == sorted(distances)
    assert distances[-1] > 4 * distances[1] > 0


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


def test_one_channel_is_repeated(perceptual32: Distance) -> None:
    a, b = noise(2, 1, 8, 8, seed=1), noise(2, 1, 8, 8, seed=2)
    repeated = perceptual32(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1))
    torch.testing.assert_close(perceptual32(a, b), repeated, rtol=1e-6, atol=0)


def test_other_channel_counts_are_refused(perceptual32: Distance) -> None:
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        perceptual32(noise(1, 4, 32, 32), noise(1, 4, 32, 32))


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
