"""The comparison of VGG16 features against its formula, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctm_core.training.distances import _vgg as vgg
from ctm_core.training.distances.lpips_vgg import LpipsVgg
from ctm_core.training.distances.stlpips_vgg import ShiftTolerantVgg

KINDS = ("lpips_vgg", "stlpips_vgg")


def random_distance(name: str) -> vgg.VggDistance:
    """VGG16 at 32 with weights that keep activations of one size, in float64."""
    built = LpipsVgg(32) if name == "lpips_vgg" else ShiftTolerantVgg(32)
    generator = torch.Generator().manual_seed(0)
    for key, value in built.state_dict().items():
        if value.ndim == 4 and value.shape[2:] == (3, 3) and value.shape[1] > 1:
            value.normal_(0, (2 / (9 * value.shape[1])) ** 0.5, generator=generator)
        elif key.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)
        else:  # heads, filters, and what the images are normalised with
            value.uniform_(0.1, 0.5, generator=generator)
    return built.double()


def formula(distance: vgg.VggDistance, a: Tensor, b: Tensor) -> Tensor:
    """The distance as the module's docstring has it."""
    total = torch.zeros(len(a), dtype=torch.float64)
    for of_a, of_b, head in zip(
        distance.features(a), distance.features(b), distance.heads, strict=True
    ):
        one, other = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-10) for x in (of_a, of_b))
        total = total + ((one - other).square() * head).sum(1).mean((1, 2))
    return total


def pair(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64, generator=generator)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize(("pixels", "strip"), [(1, 2**9), (2 * 32**2, 2**20)])
@pytest.mark.parametrize("name", KINDS)
def test_value_and_both_gradients_are_those_of_the_formula(
    name: str, pixels: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vgg.PIXELS, "cpu", pixels)
    monkeypatch.setitem(vgg.STRIP, "cpu", strip)
    distance, (a, b) = random_distance(name), pair()
    slopes = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected, value = formula(distance, a, b), distance(a, b)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    wanted = torch.autograd.grad(expected @ slopes, (a, b))
    found = torch.autograd.grad(value @ slopes, (a, b))
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-8


@pytest.mark.parametrize(("device", "trips"), [("cpu", 4), ("meta", 1)])
def test_only_a_processor_takes_one_image_at_a_time(
    device: str, trips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the size of the paper; numbers do not matter, so that no time is spent on them."""
    distance, sizes = LpipsVgg(224).to(device), []
    images = torch.zeros(4, 3, 32, 32, device=device)

    def features(x: Tensor) -> list[Tensor]:
        sizes.append(len(x))
        return [torch.zeros(len(x), head.shape[1], 2, 2, device=device) for head in distance.heads]

    monkeypatch.setattr(distance, "features", features)
    assert distance(images, images).shape == (4,)
    assert sizes == [4 // trips] * 2 * trips


@pytest.mark.parametrize("name", KINDS)
def test_layout_changes_nothing(name: str) -> None:
    distance, (a, b) = random_distance(name), pair()
    value = distance(a, b.detach())
    (wanted,) = torch.autograd.grad(value.sum(), a)
    distance.to(memory_format=torch.channels_last)
    last = [x.detach().contiguous(memory_format=torch.channels_last) for x in (a, b)]
    last[0].requires_grad_()
    again = distance(*last)
    (found,) = torch.autograd.grad(again.sum(), last[0])
    torch.testing.assert_close(again, value, rtol=1e-9, atol=0)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-8


def test_autograd_keeps_the_gradient_at_the_images_alone() -> None:
    distance, (a, b) = random_distance("lpips_vgg"), pair()
    value = distance(a, b.detach())
    kept = value.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert [None if x is None else x.shape for x in kept] == [a.shape, None]
    with torch.no_grad():
        assert distance(a, b).grad_fn is None


def test_features_that_vanish_at_some_places_have_a_finite_gradient() -> None:
    distance, (a, b) = random_distance("lpips_vgg"), pair()
    for stage in distance.stages:
        last = [layer for layer in stage if isinstance(layer, torch.nn.Conv2d)][-1]
        assert last.bias is not None
        last.bias.data[1:] = -1e3  # one channel is left, and is zero at about half the places
    value = distance(a, b.detach())
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert torch.isfinite(gradient).all()


def test_it_cannot_be_differentiated_twice() -> None:
    distance, (a, b) = random_distance("lpips_vgg"), pair()
    (gradient,) = torch.autograd.grad(distance(a, b.detach()).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="require grad"):
        gradient.sum().backward()
