"""What all distances of the consistency loss have in common, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from fixtures.distances import Images, build, crop, noise
from pydantic import ValidationError

from ctm_core import config
from ctm_core.config.distance_traits import distances as names
from ctm_core.data import assets
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training import distances
from ctm_core.training.distance import Distance


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


@pytest.mark.parametrize("name", ["l2", "pseudo_huber", "stlpips_vgg"])
def test_bf16_autocast_stays_close(name: str, perceptual32: Distance, photographs: Images) -> None:
    distance = perceptual32 if name == "stlpips_vgg" else build(name)
    a = crop(photographs["china"], 100, 200, 32).clone().requires_grad_()
    b = crop(photographs["flower"], 100, 200, 32)
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


def test_other_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="distance between shapes"):
        build("l2")(noise(2, 1, 8, 8), noise(1, 1, 8, 8))


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


# -- closed forms --------------------------------------------------------------------------------


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
